"""The rewards that come with the package, one model or control per file.

How rewards are called, pooled and summed lives one folder up; a file here knows its own model and nothing of training.
"""
