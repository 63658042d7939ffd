"""Objectives times seeds on one recipe: arms, jobs, the result and its tables.

One finished run is measured in `amd_plugin.evaluate.students`.
"""
