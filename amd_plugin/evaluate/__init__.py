"""Judging students by what they were not trained on: paired comparisons and reports."""
