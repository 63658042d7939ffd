"""The few-step scheduler that is exported with a student, and the steps down its rungs, in training exactly as in sampling.

Rungs and transitions are not computed here: a `Ladder` takes both from the stock diffusers scheduler that is exported.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from amd_plugin.errors import OptionError
from amd_plugin.maths.prediction import NoiseLevel, flow, variance_preserving, widen
from amd_plugin.schedule.noise import flow_shift, is_flow, shifted

Transition = Literal["sde", "ode"]
Draws = torch.Generator | list[torch.Generator] | None
Predict = Callable[[Tensor, Tensor], Tensor]


def few_step_scheduler(
    num_steps: int,
    teacher: Any = None,
    *,
    transition: Transition = "sde",
    shift: float | None = None,
    scales_input: bool = False,
) -> SchedulerMixin:
    """A stock diffusers scheduler whose ``set_timesteps(num_steps)`` visits the rungs of a few-step student.

    Flow matching visits sigma = s u / (1 + (s - 1) u) at u = 1, (n-1)/n, ..., 1/n for shift s, e.g. the usual timesteps 1000,
    960, 889, 727 at s = 8 and n = 4. Variance-preserving schedules keep the teacher's betas; at T = 1000 and n = 4 ``sde``
    visits 999, 759, 499, 259 and ``ode`` 999, 749, 499, 249.

    Args:
        num_steps: number of rungs n.
        teacher: scheduler of the teacher; None for plain flow matching.
        transition: transition between rungs: ``sde`` adds fresh noise to the predicted x0, ``ode`` reuses the predicted noise.
        shift: shift s of a flow schedule; None takes the teacher's.
        scales_input: whether the pipeline calls ``scheduler.scale_model_input``, which the flow-matching Euler scheduler lacks.

    Raises:
        OptionError: if the teacher's schedule has no such rungs, for ``student_steps``, ``transition`` or ``shift``.
    """
    if teacher is not None:
        _check_schedule(teacher, shift)
    if teacher is not None and num_steps > teacher.config.num_train_timesteps:
        message = f"the teacher's scheduler has {teacher.config.num_train_timesteps} training timesteps"
        raise OptionError("student_steps", f"must be at most that, {message}, got {num_steps}")
    if teacher is None or is_flow(teacher):
        shift = shift or (1.0 if teacher is None else flow_shift(teacher))
        train_steps = 1000 if teacher is None else teacher.config.num_train_timesteps
        if scales_input:
            if transition == "sde":
                raise OptionError("transition", "this pipeline has no stock flow scheduler with sde transitions, choose 'ode'")
            return _scheduler(
                UniPCMultistepScheduler,
                num_train_timesteps=train_steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift,
                solver_order=1, disable_corrector=list(range(num_steps)),
            )  # fmt: skip
        inner, terminal = _stretched(shift, num_steps, train_steps)
        return _scheduler(
            FlowMatchEulerDiscreteScheduler,
            num_train_timesteps=train_steps,
            shift=inner,
            shift_terminal=terminal,
            stochastic_sampling=transition == "sde",
        )
    if shift is not None:
        raise OptionError("shift", f"is of flow-matching schedules, and the teacher's is {type(teacher).__name__}, got {shift}")
    shared = (
        "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
        "rescale_betas_zero_snr",
    )  # fmt: skip
    config = {name: teacher.config[name] for name in shared if name in teacher.config}
    if transition == "ode":
        return _scheduler(DDIMScheduler, **config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    original_steps = min(max(50, num_steps), config["num_train_timesteps"])
    return _scheduler(LCMScheduler, **config, original_inference_steps=original_steps, clip_sample=False)


class Ladder:
    """The rungs that `scheduler` visits in `num_steps`, and its own transitions between them.

    Args:
        scheduler: diffusers scheduler, which is copied and never changed.
        num_steps: number of rungs n.
        device: device of the timesteps and levels.

    Attributes:
        timesteps: timestep of every rung [n], descending, in the units the network takes.
        levels: noise level of every rung, alpha and sigma [n].

    Raises:
        OptionError: if the scheduler does not visit n distinct timesteps.
    """

    def __init__(self, scheduler: Any, num_steps: int, device: torch.device | str = "cpu"):
        self._scheduler = copy.deepcopy(scheduler)
        try:
            self._scheduler.set_timesteps(num_steps, device=device)
            timesteps = torch.as_tensor(self._scheduler.timesteps)
        except ValueError as error:
            raise OptionError("student_steps", f"{type(scheduler).__name__} refuses {num_steps} steps: {error}") from error
        if len(timesteps) != num_steps or len(set(timesteps.tolist())) != num_steps:
            message = f"{type(scheduler).__name__} visits {timesteps.tolist()} in {num_steps} steps"
            raise OptionError("student_steps", f"{message}, which are not {num_steps} distinct timesteps")
        self.timesteps, self._host_timesteps = timesteps, timesteps.cpu()
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(0)  # or its first step asks the device for the timestep's position
        sigmas = self._scheduler.sigmas[:num_steps].to(device) if is_flow(scheduler) else None
        self.levels = flow(sigmas) if sigmas is not None else variance_preserving(scheduler.alphas_cumprod, timesteps)
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, rung: int, count: int) -> NoiseLevel:
        """The noise level of one rung, repeated for `count` samples."""
        return NoiseLevel(*(part[rung].expand(count) for part in self.levels))

    def levels_at(self, rungs: Tensor) -> NoiseLevel:
        """The noise levels at the rungs [B] of samples."""
        return NoiseLevel(*(part[rungs.to(part.device)] for part in self.levels))

    def path(self, predict: Predict, noise: Tensor, draws: Draws, rungs: int) -> list[Tensor]:
        """The scheduler's first `rungs` steps from `noise` [B, ...]: the network's inputs at rungs 0, ..., `rungs`.

        Args:
            predict: function ``predict(x_t [B, ...], timestep [B])`` to the network's raw output [B, ...].
            noise: standard normal noise [B, ...].
            draws: generator of the noise between rungs; one per sample makes the result independent of the batching.
            rungs: number of steps, from 0 to n.

        Returns:
            ``rungs + 1`` tensors [B, ...], those after the first in fp32.
        """
        inputs = [noise * getattr(self._scheduler, "init_noise_sigma", 1.0)]
        scheduler = copy.deepcopy(self._scheduler) if rungs else self._scheduler
        extra = {"generator": draws} if self._takes_generator else {}
        for timestep, host_timestep in zip(self.timesteps[:rungs], self._host_timesteps, strict=False):
            x = inputs[-1]
            output = predict(x, timestep.expand(len(x)))
            inputs.append(scheduler.step(widen(output), host_timestep, x, **extra).prev_sample)
        return inputs

    def descend(self, predict: Predict, noise: Tensor, draws: Draws, rungs: int) -> Tensor:
        """The last of the inputs of `path`: the network's input at rung `rungs`, or the samples where that is n."""
        return self.path(predict, noise, draws, rungs)[-1]


@torch.no_grad()
def sample(predict: Predict, scheduler: Any, num_steps: int, noise: Tensor, draws: Draws) -> Tensor:
    """Samples [B, ...] of `scheduler`'s own loop from `noise` [B, ...]; see `Ladder.descend` for the arguments."""
    return Ladder(scheduler, num_steps, noise.device).descend(predict, noise, draws, num_steps)


def _check_schedule(teacher: Any, shift: float | None) -> None:
    """Checks that the noise levels of `teacher` are those of betas or of a flow with one shift.

    Raises:
        OptionError: for ``path`` or ``shift``. Defaults in place of what is missing would train another schedule in silence.
    """
    kind, config = type(teacher).__name__, teacher.config
    if is_flow(teacher):
        if config.get("use_dynamic_shifting") and shift is None:
            message = f"the teacher's {kind} shifts by the size of its samples (use_dynamic_shifting)"
            raise OptionError("shift", f"{message}; set the shift for your size, got none")
        return
    betas = config.get("trained_betas") is not None or config.get("beta_start") is not None
    if not betas or config.get("timestep_type") == "continuous":
        message = f"the schedule of its {kind} is not one of betas (EDM and consistency models have such schedules)"
        raise OptionError("path", f"{message}; only schedules of betas and flow matching can be distilled")
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon":
        message = f"its {kind} begins at pure noise (rescale_betas_zero_snr), from which the noise it predicts tells no picture"
        raise OptionError("path", f"{message}; such models predict v: correct prediction_type or that key in its scheduler")


def _scheduler(kind: Any, **config: Any) -> SchedulerMixin:
    """A scheduler of class `kind`; diffusers' constructors have no types."""
    scheduler: SchedulerMixin = kind(**config)
    return scheduler


def _stretched(shift: float, num_steps: int, train_steps: int) -> tuple[float, float | None]:
    """Shift and terminal sigma with which the flow Euler scheduler visits u = 1, ..., 1/n under `shift`.

    Its own spacing ends at its smallest training sigma m, where the last of few steps would do nothing. Stretching the
    shifted schedule to end at the wanted sigma corrects the last rung. Shift and stretching are both Moebius maps, and so is
    their composition: another shift corrects all other rungs too. It depends on m and m on it, hence the fixed-point iteration.
    """
    if num_steps == 1:
        return shift, None
    inner = shift
    for _ in range(50):
        smallest = inner / train_steps / (1 + (inner - 1) / train_steps)
        start = (1 / num_steps - smallest) / (1 - smallest)
        inner = 1 + (shift - 1) * (1 - start) / (1 + (shift - 1) * start)
    return inner, float(shifted(torch.tensor(1 / num_steps, dtype=torch.float64), shift))
