"""One HTML page of runs and comparisons, with its figures.

Nothing here runs a network; it reads what runs left on disk.
"""
