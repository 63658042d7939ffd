"""Fewer forwards in FastVideo: a rollout up to the exit rung or one per cycle, and one teacher call instead of two.

FastVideo always rolls out N - 1 steps: each rank draws an exit rung of its own, and sharded networks need equally many calls
on all ranks. With one exit rung for all ranks, the steps after it can be left out, as they never reach the sample. A rollout
through all rungs gives a sample at each of them, which the turns of a cycle can share.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.harvest import Harvest, agreed_rung
from amd_plugin.adapters.method_wrapping import wrapped


def short_rollout(method: Any, batch: Any, with_grad: bool) -> tuple[Tensor, int]:
    """Student samples [B, T, C, H, W], rolled out up to the exit rung, which rank 0 draws for all ranks, and this rung.

    Args:
        method: FastVideo's `DMD2Method`, in rollout mode ``simulate``.
        batch: FastVideo's training batch.
        with_grad: whether the last step has a graph.
    """
    rungs = method._get_denoising_step_list(batch.latents.device)
    last = int(agreed_rung(len(rungs), batch.latents.device, method.cuda_generator))
    x = _noise_like(method, batch.latents)
    for index in range(last):
        x0 = call_at(method, x, index, batch, with_grad=False)
        x = _renoised(method, x0, index + 1)
    return call_at(method, x, last, batch, with_grad=with_grad), last


def harvest(method: Any, batch: Any, raw_batch: Any) -> Harvest:
    """The samples of one rollout from noise through all rungs; each has the distribution of `short_rollout` at its rung.

    Args:
        method: FastVideo's `DMD2Method`, in rollout mode ``simulate``.
        batch: FastVideo's training batch.
        raw_batch: the batch of FastVideo's data that `batch` was made of.
    """
    count = len(method._get_denoising_step_list(batch.latents.device))
    rung = int(agreed_rung(count, batch.latents.device, method.cuda_generator))
    inputs, samples = [_noise_like(method, batch.latents)], list[Tensor]()
    for index in range(count):
        samples.append(call_at(method, inputs[-1], index, batch, with_grad=False))
        if index + 1 < count:
            inputs.append(_renoised(method, samples[-1], index + 1))
    return Harvest(raw_batch, samples, inputs[rung], rung)


def call_at(method: Any, x: Tensor, index: int, batch: Any, *, with_grad: bool) -> Tensor:
    """The student's samples from its inputs `x` at the rung `index`, by one call."""
    rung = method._get_denoising_step_list(x.device)[index : index + 1]
    batch.dmd_latent_vis_dict["generator_timestep"] = rung.float().detach()
    with torch.set_grad_enabled(with_grad):
        x0: Tensor = method.student.predict_x0(x, rung, batch, conditional=True, cfg_uncond=method._cfg_uncond, attn_kind="vsa")
    return x0


def _renoised(method: Any, x0: Tensor, index: int) -> Tensor:
    """The student's inputs at the rung `index`, from the samples of the rung before."""
    rung = method._get_denoising_step_list(x0.device)[index : index + 1]
    with torch.no_grad():
        x: Tensor = method.student.add_noise(x0, _noise_like(method, x0), rung)
    return x


def _noise_like(method: Any, x: Tensor) -> Tensor:
    return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=method.cuda_generator)


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
