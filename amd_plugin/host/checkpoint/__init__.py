"""Files of a checkpoint: safetensors and JSON, written completely or not at all.

What a run puts into them is decided in `amd_plugin.host.running`.
"""

from amd_plugin.host.checkpoint.files import available, check, find, load, save, tensors_on

__all__ = ["available", "check", "find", "load", "save", "tensors_on"]
