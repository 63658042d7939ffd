"""`amd-plugin evaluate`: samples of a run's student, drawn, written, measured and summed up.

Comparisons of objectives live in `amd_plugin.evaluate.comparison`.
"""
