"""Comparisons of objectives over seeds on one recipe: arms, jobs, the result and its tables.

Measurements of a single run live in `amd_plugin.evaluate.students`.
"""
