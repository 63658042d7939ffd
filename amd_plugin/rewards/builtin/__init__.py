"""The rewards that come with the package, one model or control per file.

How rewards are called, pooled and summed is defined one folder up; a file here holds one model and no training code.
"""
