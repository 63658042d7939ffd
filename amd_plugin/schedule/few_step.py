"""The few-step scheduler that ships with a student, and sampling with it exactly as a user will."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


def few_step_scheduler(num_steps: int) -> FlowMatchEulerDiscreteScheduler:
    """A stock flow scheduler whose ``set_timesteps(num_steps)`` visits sigma = 1, (n-1)/n, ..., 1/n.

    Between rungs it predicts x0 and re-noises, as the student was trained to expect. Stretching the schedule to end at 1/n
    is what puts its last rung there; by default the last of few steps would land next to sigma 0 and do nothing.
    """
    terminal = 1 / num_steps if num_steps > 1 else None
    return FlowMatchEulerDiscreteScheduler(stochastic_sampling=True, shift_terminal=terminal)


@torch.no_grad()
def sample(
    network: Callable[[Tensor, Tensor], Tensor], scheduler: Any, num_steps: int, noise: Tensor, generator: torch.Generator
) -> Tensor:
    """Runs `scheduler`'s own loop over `network(x_t [B, ...], timestep [B]) -> output [B, ...]`, starting from `noise`.

    Args:
        generator: of the noise between rungs; on `noise`'s device.

    Returns:
        Samples [B, ...].
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_steps, device=noise.device)
    x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    for timestep in scheduler.timesteps:
        output = network(x, timestep.expand(len(x)))
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    return x
