"""A residual MLP for points, with the calling convention of diffusers' DiT."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class PointMLP(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as all of diffusers' models, whose bases differ in a name
    """Predicts the flow at a point, given a timestep and a class; blocks are modulated by the condition (FiLM).

    Args:
        channels: dimension of a point.
        width: hidden units.
        depth: residual blocks.
        num_classes: number of labels, which run from 0; `num_classes` itself means "no label".
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types
    def __init__(self, channels: int = 2, width: int = 64, depth: int = 2, num_classes: int = 8):
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers has no types
        self.enter = nn.Linear(7 * channels, width)
        self.time = nn.Linear(12, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.modulate = nn.Linear(width, 2 * width * depth)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.leave = nn.Linear(width, channels)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Transformer2DModelOutput:
        """Output [B, channels] for points [B, channels], timesteps [B] in [0, 1000] and labels [B]."""
        dtype = self.enter.weight.dtype
        h = self.enter(torch.cat((hidden_states, _waves(hidden_states, 3, 1.0)), 1).to(dtype))
        time = self.time(_waves(timestep[:, None] / 1000, 6, torch.pi / 2).to(dtype))
        condition = self.modulate(nn.functional.silu(time + self.label(class_labels)))
        for block, modulation in zip(self.blocks, condition.chunk(len(self.blocks), 1), strict=True):
            scale, shift = modulation.chunk(2, 1)
            h = h + block(h * (1 + scale) + shift)
        return Transformer2DModelOutput(sample=self.leave(nn.functional.silu(h)))


def _waves(x: Tensor, octaves: int, base: float) -> Tensor:
    """Sines and cosines of x [B, D] at `octaves` frequencies from `base` up; [B, 2 * octaves * D]."""
    angle = (x[:, :, None] * base * 2.0 ** torch.arange(octaves, device=x.device)).flatten(1)
    return torch.cat((angle.sin(), angle.cos()), 1)
