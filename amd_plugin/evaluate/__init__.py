"""Evaluation of finished runs: measurements of one student, paired comparisons of objectives, and reports.

Nothing here changes a student. Evaluation during training lives in `amd_plugin.host.evaluation`.
"""
