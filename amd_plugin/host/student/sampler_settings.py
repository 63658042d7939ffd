"""Settings with which other programs visit the timesteps that a student was trained at.

Programs mean different timesteps by the same name of a sampler. ComfyUI's schedule ``simple`` takes every k-th entry, rounded
down, of its model's table of noise levels (comfy/samplers.py), which is computed here, so that a card can show the difference.
"""

from __future__ import annotations

from typing import Any

import torch

from amd_plugin.config import ModelConfig
from amd_plugin.models.backbone import Backbone
from amd_plugin.schedule import Ladder
from amd_plugin.schedule.noise import is_flow, shifted


class SamplerSettings:
    """What to set in ComfyUI and in the webuis for a student of `backbone`.

    Args:
        backbone: the model that the student was distilled from.
        model: the recipe's model section.

    Attributes:
        timesteps: timesteps that the student was trained at.
        elsewhere: timesteps that these settings visit.
        node: ComfyUI's node before the sampler, with its settings; None where it needs none.
        sampler: name of the sampler in ComfyUI.
        shift: shift of a flow schedule; None for other schedules.
    """

    def __init__(self, backbone: Backbone, model: ModelConfig):
        scheduler: Any = backbone.scheduler
        self.steps, sde = model.student_steps, model.transition == "sde"
        self.timesteps = [_rounded(t) for t in Ladder(scheduler, self.steps).timesteps.tolist()]
        self.shift = backbone.shift if is_flow(scheduler) else None
        total = scheduler.config.num_train_timesteps
        distilled = sde and self.shift is None and scheduler.config.prediction_type == "epsilon"
        if self.shift is not None:
            self.node: str | None = f"ModelSamplingSD3 with shift {self.shift:g}"
        else:
            kind = "lcm" if distilled else {"v_prediction": "v_prediction"}.get(scheduler.config.prediction_type)
            zsnr = " and zsnr" if scheduler.config.get("rescale_betas_zero_snr") else ""
            self.node = None if kind is None else f"ModelSamplingDiscrete with sampling {kind}{zsnr}"
        # The node for LCM keeps 50 of the timesteps, as diffusers' scheduler does.
        entries = 50 if distilled else total
        picked = [entries - 1 - int(step * (entries / self.steps)) for step in range(self.steps)]
        levels = [(entry + 1) * (total // entries) for entry in picked]
        if self.shift is not None:
            self.elsewhere = [_rounded(shifted(torch.tensor(level / total), self.shift) * total) for level in levels]
        else:
            self.elsewhere = [_rounded(level - 1) for level in levels]
        self.sampler = "lcm" if sde else "euler"

    @property
    def exact(self) -> bool:
        """Whether these settings visit the trained timesteps, to within one."""
        return all(abs(ours - theirs) <= 1 for ours, theirs in zip(self.timesteps, self.elsewhere, strict=True))

    @property
    def in_words(self) -> str:
        """One line for metadata."""
        node = f"{self.node}, " if self.node else ""
        settings = f"{self.steps} steps, {node}sampler {self.sampler}, schedule simple, CFG 1"
        return f"{settings}; trained at timesteps {self.timesteps}"


def _rounded(timestep: Any) -> float:
    """A timestep to a tenth, as people write it: an integer where it is whole."""
    value = round(float(timestep), 1)
    return int(value) if value.is_integer() else value
