"""The noise schedule of a diffusers scheduler: noise levels of timesteps, and training targets."""

from typing import Any

from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.maths.prediction import NoiseLevel, Prediction, flow, to_x0, training_target, variance_preserving


class NoiseSchedule:
    """The coefficients alpha(t) and sigma(t) of `scheduler`, and the prediction type of networks trained with it.

    Args:
        scheduler: diffusers scheduler, flow matching or variance preserving.
        shift: shift s of a flow schedule, by which `timestep` favours high noise; 1 is uniform.

    Attributes:
        num_train_timesteps: number of training timesteps.
        is_flow: whether the schedule is one of flow matching.
        prediction_type: prediction type of the networks, in diffusers' names.

    Raises:
        InputError: for a scheduler with neither kind of schedule.
    """

    def __init__(self, scheduler: Any, shift: float = 1.0):
        config = scheduler.config
        self.num_train_timesteps: int = config.num_train_timesteps
        self.is_flow = is_flow(scheduler)
        self.prediction_type: Prediction = "flow_prediction" if self.is_flow else config.prediction_type
        if not self.is_flow and not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(f"scheduler {type(scheduler).__name__}: has neither flow sigmas nor alphas_cumprod")
        self._alphas_cumprod = None if self.is_flow else scheduler.alphas_cumprod
        self._shift = shift

    def level(self, timestep: Tensor) -> NoiseLevel:
        """The noise level at `timestep` [B], in the units the network takes, 0 to num_train_timesteps."""
        if self._alphas_cumprod is None:
            return flow(timestep.float() / self.num_train_timesteps)
        return variance_preserving(self._alphas_cumprod, timestep)

    def timestep(self, fraction: Tensor) -> Tensor:
        """The timestep [B] at `fraction` [B] in [0, 1] of the schedule: continuous for flow, rounded down otherwise."""
        if self.is_flow:
            return shifted(fraction, self._shift) * self.num_train_timesteps
        return (fraction * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def above(self, timestep: Tensor) -> Tensor:
        """The lowest fraction [n] of the schedule above `timestep` [n]; for flow, which is continuous, the fraction at it."""
        if self.is_flow:
            return shifted(timestep / self.num_train_timesteps, 1 / self._shift)
        return (timestep + 1) / self.num_train_timesteps

    def to_x0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Clean data [B, ...] implied by a network's `output` [B, ...] for `x_t` [B, ...] at `level` [B]."""
        return to_x0(self.prediction_type, output, x_t, level)

    def target(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The training target [B, ...] of a network for `x0` [B, ...], noised by `noise` [B, ...] at `timestep` [B]."""
        return training_target(self.prediction_type, x0, noise, self.level(timestep))


def is_flow(scheduler: Any) -> bool:
    """Whether `scheduler` is a flow-matching scheduler."""
    config = scheduler.config
    flows = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return "FlowMatch" in type(scheduler).__name__ or bool(flows)


def flow_shift(scheduler: Any) -> float:
    """The shift that a flow scheduler is configured with; 1 where there is none."""
    return float(scheduler.config.get("flow_shift") or scheduler.config.get("shift") or 1.0)


def shifted(fraction: Tensor, shift: float) -> Tensor:
    """``s u / (1 + (s - 1) u)``: moves levels u in [0, 1] towards noise, as large samples need (2403.03206, Eq. 23)."""
    return fraction if shift == 1 else shift * fraction / (1 + (shift - 1) * fraction)
