"""Building a network from a recipe, and calling it the same way whatever class it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from amd_plugin.config import ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.mlp import PointMLP
from amd_plugin.randomness import generator

if TYPE_CHECKING:
    from amd_plugin.tasks import Task


def check_network(config: ModelConfig, task: Task) -> None:
    """Raises OptionError, naming the key of the recipe's model section, where the network does not fit the task's samples."""
    shape = task.sample_shape
    wanted = "mlp" if len(shape) == 1 else "dit"
    if config.network != wanted:
        raise OptionError("network", f"samples of {task.name} have shape {shape} and need '{wanted}', got '{config.network}'")
    if wanted == "dit" and config.width % (4 * config.heads):
        raise OptionError("width", f"must be a multiple of four times heads, {4 * config.heads}, got {config.width}")
    if wanted == "dit" and shape[-1] % config.patch_size:
        raise OptionError("patch_size", f"must divide the {shape[-1]} pixels of an edge, got {config.patch_size}")


def build_network(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """A freshly initialised network of the recipe's class for `task`'s samples, in eval mode.

    Eval mode throughout: labels are dropped by the trainer's own keyed draws, not by dropout inside the network.

    Raises:
        OptionError: where the network does not fit the samples.
    """
    check_network(config, task)
    shape = task.sample_shape
    # diffusers' constructors draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "network").initial_seed())
        if config.network == "mlp":
            return PointMLP(shape[0], config.width, config.depth, task.num_classes).eval()
        return DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=shape[0],
            out_channels=shape[0],
            num_layers=config.depth,
            sample_size=shape[-1],
            patch_size=config.patch_size,
            num_embeds_ada_norm=task.num_classes,
            norm_num_groups=1,
        ).eval()


class ClassConditional:
    """Calls a class-conditional diffusers network: ``output = call(network, x_t, timestep, labels)``.

    Args:
        num_classes: the label that means "no label".
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, network: nn.Module, x_t: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        """The raw output [B, ...]."""
        return network(x_t, timestep=timestep, class_labels=labels).sample

    def uncond(self, labels: Tensor) -> Tensor:
        """Labels [B] that mean none."""
        return torch.full_like(labels, self.num_classes)

    def guided(self, network: nn.Module, x_t: Tensor, timestep: Tensor, labels: Tensor, scale: float) -> Tensor:
        """Output with classifier-free guidance ``uncond + scale (cond - uncond)``, in one call of twice the batch."""
        if scale == 1:
            return self(network, x_t, timestep, labels)
        cond, uncond = self.pair(network, x_t, timestep, labels)
        return uncond + scale * (cond - uncond)

    def pair(self, network: nn.Module, x_t: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(conditional, unconditional) outputs from one call of twice the batch."""
        labels = torch.cat((labels, self.uncond(labels)))
        cond, uncond = self(network, x_t.repeat(2, *[1] * (x_t.dim() - 1)), timestep.repeat(2), labels).chunk(2)
        return cond, uncond
