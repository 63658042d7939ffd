"""The method as pure functions on tensors: predictions, directions, advantages, weights and losses, named as in the papers.

Only torch and `amd_plugin.errors` are imported here. Configuration, models and the state of a training run belong elsewhere.
"""
