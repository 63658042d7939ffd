"""Small class-conditional networks for embedded tasks, and their calling convention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from amd_plugin.config import ModelConfig
from amd_plugin.models.embedded.mlp import PointMLP
from amd_plugin.models.embedded.shapes import check_network
from amd_plugin.models.family import Condition, Features, Network
from amd_plugin.randomness import generator
from amd_plugin.tasks import Task


def build_network(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """A freshly initialised ``mlp`` or ``dit`` for the samples of `task`, in eval mode.

    Eval mode throughout: the trainer drops labels by its own keyed draws, without dropout inside the network.

    Raises:
        OptionError: where the network does not fit the samples.
    """
    check_network(config, task)
    shape = task.sample_shape
    # diffusers' constructors draw from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "network").initial_seed())
        if config.network == "mlp":
            shapes = {"channels": shape[0], "width": config.width, "depth": config.depth}
            network: Any = PointMLP(**shapes, num_classes=task.num_classes)
        else:
            network = DiTTransformer2DModel(
                num_attention_heads=config.heads,
                attention_head_dim=config.width // config.heads,
                in_channels=shape[0],
                out_channels=shape[0],
                num_layers=config.depth,
                sample_size=shape[-1],
                patch_size=config.patch_size,
                num_embeds_ada_norm=task.num_classes,
                norm_num_groups=1,
            )
        return cast(nn.Module, network.eval())


class ClassConditional:
    """The family of class-conditional networks outside a pipeline, see `amd_plugin.models.family`."""

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The raw output [B, ...]."""
        output: Tensor = network(x_t, timestep=timestep, class_labels=condition["class_labels"]).sample
        return output

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """``class_labels``: one number."""
        return {"class_labels": ()}

    def features(self, network: Any) -> Features:
        """The output of the middle block."""
        blocks = network.blocks if isinstance(network, PointMLP) else network.transformer_blocks
        width = getattr(network.config, "width", None) or (
            network.config.num_attention_heads * network.config.attention_head_dim
        )
        return Features(blocks[len(blocks) // 2], width, -1)

    def time_embeddings(self, network: Any) -> Sequence[Features]:
        """The one embedding of the MLP; in a transformer, one per block."""
        if isinstance(network, PointMLP):
            return [Features(network.time, network.config.width, -1)]
        embedders = [block.norm1.emb.timestep_embedder for block in network.transformer_blocks]
        return [Features(embedder, embedder.linear_2.out_features, -1) for embedder in embedders]
