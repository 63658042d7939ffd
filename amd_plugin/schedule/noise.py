"""The noise schedule of a diffusers scheduler: levels, training targets and the rungs its sampler visits."""

import copy
from typing import Any

import torch
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.prediction import NoiseLevel, Prediction, flow, to_x0, training_target, variance_preserving


class NoiseSchedule:
    """alpha(t) and sigma(t) of `scheduler`, and the prediction type of networks made for it.

    Args:
        scheduler: a diffusers scheduler, flow matching or variance preserving.

    Raises:
        InputError: for a scheduler with neither kind of schedule.
    """

    def __init__(self, scheduler: Any):
        config = scheduler.config
        self.num_train_timesteps: int = config.num_train_timesteps
        self.is_flow = "FlowMatch" in type(scheduler).__name__ or bool(config.get("use_flow_sigmas"))
        self.prediction_type: Prediction = config.get("prediction_type") or "flow_prediction"
        if not self.is_flow and not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(f"scheduler {type(scheduler).__name__}: has neither flow sigmas nor alphas_cumprod")
        self._alphas_cumprod = None if self.is_flow else scheduler.alphas_cumprod
        self._scheduler = scheduler

    def level(self, timestep: Tensor) -> NoiseLevel:
        """The level at `timestep` [B], in the units the network takes, 0 to num_train_timesteps."""
        if self._alphas_cumprod is None:
            return flow(timestep.float() / self.num_train_timesteps)
        return variance_preserving(self._alphas_cumprod, timestep)

    def timestep(self, fraction: Tensor) -> Tensor:
        """The timestep at `fraction` [B] in [0, 1] of the schedule: continuous for flow, the nearest one below otherwise."""
        if self.is_flow:
            return fraction * self.num_train_timesteps
        return (fraction * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def to_x0(self, output: Tensor, x_t: Tensor, timestep: Tensor) -> Tensor:
        """Clean data [B, ...] from a network's `output` at `x_t`."""
        return to_x0(self.prediction_type, output, x_t, self.level(timestep))

    def target(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What a network should output for `x0` noised by `noise`, [B, ...]."""
        return training_target(self.prediction_type, x0, noise, self.level(timestep))

    def rungs(self, num_steps: int) -> Tensor:
        """The timesteps [num_steps], descending, that the scheduler's own sampler visits.

        Raises:
            InputError: if it has not that many distinct ones.
        """
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(num_steps)
        timesteps = torch.as_tensor(scheduler.timesteps)
        if len(timesteps) != num_steps or len(timesteps.unique()) != num_steps:
            raise InputError(
                f"scheduler {type(scheduler).__name__}: visits {timesteps.tolist()} in {num_steps} steps, "
                f"which are not {num_steps} distinct timesteps"
            )
        return timesteps
