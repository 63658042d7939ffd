"""One HTML page on runs and comparisons, with its figures.

It reads the files of finished runs and trains nothing; only a toy teacher is sampled, for the picture beside the students.
"""
