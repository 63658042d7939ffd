"""Held-out evaluation during training: metrics, pictures, and the alarm for hacked rewards.

`amd_plugin.evaluate` measures finished runs at length; nothing here changes a weight.
"""
