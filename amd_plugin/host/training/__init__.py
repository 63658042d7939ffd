"""One cycle of training: rollouts, scores, noise levels, losses and updates.

No run folder, console or held-out evaluation belongs here.
"""
