"""Networks: the pipelines they are loaded from, their roles in a run, and how they are called.

Training, optimizers and processes are the host's.
"""
