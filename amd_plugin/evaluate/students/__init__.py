"""`amd-plugin evaluate`: samples of one run's student, their files, their measurements and the summary.

Comparisons of objectives live in `amd_plugin.evaluate.comparison`.
"""
