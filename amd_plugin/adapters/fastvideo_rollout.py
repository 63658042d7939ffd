"""Fewer forwards in FastVideo for the same distribution: a rollout up to the exit rung, and one teacher call instead of two.

FastVideo always rolls out N - 1 steps: each rank draws an exit rung of its own, and sharded networks need equally many calls
on all ranks. With one exit rung for all ranks, the steps after it can be left out, as they never reach the sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from amd_plugin.adapters.method_wrapping import wrapped


def short_rollout(method: Any, batch: Any, with_grad: bool) -> Tensor:
    """Student samples [B, T, C, H, W], rolled out up to the exit rung, which rank 0 draws for all ranks.

    Args:
        method: FastVideo's `DMD2Method`, in rollout mode ``simulate``.
        batch: FastVideo's training batch.
        with_grad: whether the last step has a graph.
    """
    shape, device, draws = batch.latents.shape, batch.latents.device, method.cuda_generator
    rungs = method._get_denoising_step_list(device)
    exit_rung = torch.randint(len(rungs), [1], device=device, generator=draws)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(exit_rung, src=0)
    x = torch.randn(shape, device=device, dtype=batch.latents.dtype, generator=draws)
    options = {"conditional": True, "cfg_uncond": method._cfg_uncond, "attn_kind": "vsa"}
    last = int(exit_rung)
    for index in range(last):
        with torch.no_grad():
            x0 = method.student.predict_x0(x, rungs[index : index + 1], batch, **options)
            noise = torch.randn(shape, device=device, dtype=x0.dtype, generator=draws)
            x = method.student.add_noise(x0, noise, rungs[index + 1 : index + 2])
    with torch.set_grad_enabled(with_grad):
        x0 = method.student.predict_x0(x, rungs[last : last + 1], batch, **options)
    batch.dmd_latent_vis_dict["generator_timestep"] = rungs[last : last + 1].float().detach()
    return x0  # type: ignore[no-any-return]


@contextmanager
def one_teacher_call(teacher: Any, batch: Any) -> Iterator[None]:
    """Computes both branches of guidance in one forward of twice the batch, if their conditions can be concatenated."""
    both_conditions = joined_conditions(batch)
    if both_conditions is None:
        yield
        return
    uncond: list[Tensor] = []

    def both(
        predict: Callable[..., Tensor], x_t: Tensor, timestep: Tensor, _: Any, *, conditional: bool, **options: Any
    ) -> Tensor:
        if not conditional and uncond:
            return uncond.pop()
        timesteps = timestep if len(timestep) == 1 else torch.cat([timestep, timestep])
        flow = predict(torch.cat([x_t, x_t]), timesteps, both_conditions, conditional=True, **options)
        uncond.append(flow[len(x_t) :])
        return flow[: len(x_t)]

    with wrapped(teacher, "predict_noise", both):
        yield


def joined_conditions(batch: Any) -> Any:
    """A copy of the batch with its unconditional text embeddings after the conditional ones; None if shapes do not match."""
    cond, uncond = batch.conditional_dict, getattr(batch, "unconditional_dict", None)
    if not cond or not uncond or set(cond) != set(uncond):
        return None
    if any(not isinstance(cond[k], Tensor) or cond[k].shape != uncond[k].shape for k in cond):
        return None
    joined = copy.copy(batch)
    joined.conditional_dict = {k: torch.cat([cond[k], uncond[k].to(cond[k])]) for k in cond}
    return joined
