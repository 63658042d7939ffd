"""A run's student: read from a checkpoint, exported as a diffusers pipeline, described in a model card.

Nothing here trains.
"""
