"""Random numbers keyed by what they are for, so that there is no generator state to lose.

Every draw covers the whole batch over all processes and has a key for its purpose. The numbers do not depend on how many
processes or micro-batches share the work, on earlier draws, or on whether the run was resumed.
"""

import hashlib

import torch


def generator(seed: int, *key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for `key`, e.g. ``(step, "student", "noise")``; equal keys give equal numbers."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
