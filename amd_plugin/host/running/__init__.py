"""A run as a process: its folder, its state on disk, its log, its ranks and the signals that stop it.

No forward pass and no loss belongs here.
"""
