"""Judging students by what they were not trained on: metrics, paired comparisons, reports."""
