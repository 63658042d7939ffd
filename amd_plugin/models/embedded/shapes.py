"""Whether a network fits the samples of its task, asked before anything is imported that could build it."""

from __future__ import annotations

from amd_plugin.config import ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.tasks import Task


def check_network(config: ModelConfig, task: Task) -> None:
    """Checks that the network of a recipe fits the samples of its task.

    Raises:
        OptionError: naming the key of the model section that does not fit.
    """
    shape = task.sample_shape
    fitting = {1: ("mlp",), 3: ("dit", "sdxl"), 4: ("wan",)}[len(shape)]
    if config.network not in fitting:
        wanted = " or ".join(f"'{network}'" for network in fitting)
        raise OptionError("network", f"samples of {task.name} have shape {shape} and need {wanted}, got '{config.network}'")
    if config.network in ("dit", "wan") and config.width % (4 * config.heads):
        raise OptionError("width", f"must be a multiple of four times heads, {4 * config.heads}, got {config.width}")
    if config.network == "sdxl" and config.width % 32:
        raise OptionError("width", f"must be a multiple of 32 for a UNet, got {config.width}")
    if config.network in ("dit", "wan") and shape[-1] % config.patch_size:
        raise OptionError("patch_size", f"must divide the {shape[-1]} pixels of an edge, got {config.patch_size}")
