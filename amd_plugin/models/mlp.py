"""A residual MLP for points, with the calling convention of diffusers' DiT."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn


class PointMLP(ModelMixin, ConfigMixin):
    """Predicts the flow at a point, given a timestep and a class.

    Args:
        channels: dimension of a point.
        width: hidden units.
        depth: residual blocks.
        num_classes: labels run from 0 to num_classes - 1; num_classes itself means "no label".
    """

    @register_to_config
    def __init__(self, channels: int = 2, width: int = 64, depth: int = 2, num_classes: int = 8):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(0, 6) * torch.pi / 2, persistent=False)
        self.enter = nn.Linear(channels, width)
        self.time = nn.Linear(12, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.condition = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """Output [B, channels] for points [B, channels], timesteps [B] in [0, 1000] and labels [B]."""
        angle = timestep[:, None] / 1000 * self.frequencies
        embedded = nn.functional.silu(self.time(torch.cat((angle.sin(), angle.cos()), 1)) + self.label(class_labels))
        h = self.enter(hidden_states)
        for block, condition in zip(self.blocks, self.condition, strict=True):
            h = h + block(h + condition(embedded))
        return Transformer2DModelOutput(sample=self.leave(h))
