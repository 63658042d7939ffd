"""Fewer forwards in FastVideo, the same in distribution: a rollout that ends at its exit rung, and one teacher call, not two.

The host rolls out all N - 1 steps whichever rung it drew, because ranks draw their own and sharded networks need as many
calls on each. With one rung for all ranks, the steps behind it are not needed: they never reached the sample.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def watched(owner: Any, name: str, watch: Callable[..., Any]) -> Iterator[None]:
    """Has `watch` called with the method `name` of one object, and then its arguments, in the method's place."""
    shadowed = vars(owner).get(name)
    object.__setattr__(owner, name, functools.partial(watch, getattr(owner, name)))
    try:
        yield
    finally:
        object.__delattr__(owner, name) if shadowed is None else object.__setattr__(owner, name, shadowed)


def short_rollout(method: Any, batch: Any, with_grad: bool) -> Tensor:
    """Student samples [B, T, C, H, W] by only the steps before the exit rung, whose index rank 0 draws for all.

    Args:
        method: the host's `DMD2Method`, in rollout mode ``simulate``.
        batch: the host's.
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
    """Both branches of guidance in one forward of twice the batch, where conditions can be joined."""
    joined = joined_conditions(batch)
    if joined is None:
        yield
        return
    uncond: list[Tensor] = []

    def both(
        predict: Callable[..., Tensor], x_t: Tensor, timestep: Tensor, _: Any, *, conditional: bool, **options: Any
    ) -> Tensor:
        if not conditional and uncond:
            return uncond.pop()
        levels = timestep if len(timestep) == 1 else torch.cat([timestep, timestep])
        flow = predict(torch.cat([x_t, x_t]), levels, joined, conditional=True, **options)
        uncond.append(flow[len(x_t) :])
        return flow[: len(x_t)]

    with watched(teacher, "predict_noise", both):
        yield


def joined_conditions(batch: Any) -> Any:
    """The batch with its conditional and unconditional texts one after the other; None where shapes do not allow it."""
    cond, uncond = batch.conditional_dict, getattr(batch, "unconditional_dict", None)
    if not cond or not uncond or set(cond) != set(uncond):
        return None
    if any(not isinstance(cond[k], Tensor) or cond[k].shape != uncond[k].shape for k in cond):
        return None
    joined = copy.copy(batch)
    joined.conditional_dict = {k: torch.cat([cond[k], uncond[k].to(cond[k])]) for k in cond}
    return joined
