"""Two ways in which a student fails that no loss shows: its samples become alike, or their values run to black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amd_plugin.errors import MissingDependency
from amd_plugin.metrics import saturation
from amd_plugin.randomness import generator
from amd_plugin.tasks import Task

SPREAD, SATURATION = HEALTH = ("samples/spread", "samples/saturation")
ALIKE, EXTREME, MORE = 0.3, 0.5, 0.2  # of the largest spread; of all values; above the smallest share so far


def health(media: Tensor, labels: Tensor) -> dict[str, float]:
    """The spread of samples of one label, and for pictures the share of values at 0 or 1.

    Args:
        media: the decoded samples [N, ...].
        labels: the labels [N].
    """
    _, index, count = torch.unique(labels, return_inverse=True, return_counts=True)
    flat, index, count = media.float().flatten(1), index.to(media.device), count.to(media.device)
    if not (count > 1).any():  # prompts that all differ: the spread over all of them
        index, count = torch.zeros_like(index), torch.tensor([len(flat)], device=flat.device)
    means = flat.new_zeros(len(count), flat.shape[1]).index_add(0, index, flat) / count[:, None]
    found = {SPREAD: (flat - means[index]).square().mean().sqrt().item()}
    return found | ({SATURATION: saturation(media).mean().item()} if media.dim() > 2 else {})


def real_saturation(task: Task) -> float:
    """The share of values at 0 or 1 in real samples of `task`, e.g. of a black background; 0 where it has none at hand."""
    if not task.has_samples or task.in_pixels:
        return 0.0
    try:
        media = task.to_media(task.real_data(64, generator(0, "real saturation"))[0])
    except MissingDependency:  # e.g. drawings, which a run with a teacher of its own does without
        return 0.0
    return saturation(media).mean().item() if media.dim() > 2 else 0.0


def problems(rows: Sequence[Mapping[str, float]], guidance_scale: float, levers: Sequence[str], real: float = 0.0) -> list[str]:
    """What has gone wrong by the last of `rows`, as sentences ``kind: what, and the setting to change``.

    Args:
        rows: evaluations, lines of metrics.jsonl, the last one last.
        guidance_scale: the teacher's guidance scale.
        levers: options that set the influence of the reward.
        real: share of values at 0 or 1 in real samples; 0 where it is unknown.
    """
    found = []
    spreads, shares = ([row[name] for row in rows if name in row] for name in HEALTH)
    weaker = f"lower {' or '.join(levers)}" if levers else "raise train.fake_updates"
    if spreads and spreads[-1] < ALIKE * max(spreads):
        found.append(
            f"collapse: samples of one prompt differ by {spreads[-1]:.3g}, {spreads[-1] / max(spreads):.0%} of what they did. "
            f"Lower train.student_lr or raise train.fake_updates, so that the fake score keeps up; else {weaker}"
        )
    if shares and shares[-1] > max(EXTREME, min(shares) + MORE, real + MORE):
        guidance = f"lower objective.guidance_scale (now {guidance_scale:g})" if guidance_scale > 1 else weaker
        found.append(
            f"saturation: {shares[-1]:.0%} of all values are at black or white, {min(shares):.0%} before. "
            f"To change that, {guidance}, or train.student_lr"
        )
    return found
