"""The three detectors: A is the reward, B judges, and C measures distances. Each has a seed, a width and lessons of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from amd_plugin.cache import cached
from amd_plugin.randomness import generator
from amd_plugin.tasks.scenes.detector import Detector, loss
from amd_plugin.tasks.scenes.grammar import OBJECTS
from amd_plugin.tasks.scenes.lessons import Lessons
from amd_plugin.tasks.scenes.sprites import other_drawings
from amd_plugin.tasks.shipped import read, shipped

WIDTHS = {"a": 14, "b": 18, "c": 16}
# Distances need fewer updates than verdicts.
STEPS = {"a": 3600, "b": 3600, "c": 1500}
BATCH, RATE = 64, 3e-3


def made_of(judge: str, objects: Sequence[str], colours: Sequence[str], seed: int) -> dict[str, Any]:
    """JSON-able description of what a judge depends on: the settings here, and drawings and colours where they are others.

    Code is no part of it, nor are the constants of other files and the versions of libraries: `cached` adds code, for judges
    that are trained here. Those of the package are used whatever the code; tests hold the first losses of training and what
    the package's judges make of real scenes.
    """
    training = {"width": WIDTHS[judge], "steps": STEPS[judge], "batch": BATCH, "rate": RATE}
    lists = {"objects": list(objects), "colours": list(colours)}
    return {"judge": judge, **lists, "seed": seed, **training, **other_drawings()}


def trained(
    judge: str, objects: Sequence[str], colours: Sequence[str], seed: int, check: Callable[[Detector], None] | None = None
) -> Detector:  # fmt: skip
    """Judge ``a``, ``b`` or ``c``, frozen: the one that comes with the package, or trained here once, and cached.

    Args:
        judge: its name.
        objects, colours: what it tells apart; all other objects are something else to it.
        seed: seed of its weights and lessons.
        check: called once with a judge that was trained here.
    """
    network, about = untrained(judge, objects, colours, seed), made_of(judge, objects, colours, seed)

    def make(folder: Path) -> None:
        train(network, judge, objects, colours, seed, STEPS[judge])
        if check is not None:
            check(network)
        save_file(network.state_dict(), folder / "judge.safetensors")

    if (file := shipped(f"scenes_judge_{judge}", about)) is not None:
        network.load_state_dict(read(file))
    else:
        network.load_state_dict(load_file(cached("judge-scenes", about, make) / "judge.safetensors"))
    return network.eval().requires_grad_(False)


def untrained(judge: str, objects: Sequence[str], colours: Sequence[str], seed: int) -> Detector:
    """The network of judge ``a``, ``b`` or ``c`` with its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "judge", judge).initial_seed())
        return Detector(len(objects), len(colours), WIDTHS[judge])


def train(network: Detector, judge: str, objects: Sequence[str], colours: Sequence[str], seed: int, steps: int) -> list[float]:
    """Trains the network of `judge` in place, and returns the losses; a shorter training begins like the whole one."""
    others = [name for name in OBJECTS if name not in objects]
    lessons, draws = Lessons(list(objects), others, list(colours)), generator(seed, "judge", judge, "lessons")
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS[judge], pct_start=0.1, cycle_momentum=False)
    losses = []
    for _ in range(steps):
        lesson = lessons(BATCH, draws)
        value = loss(network(lesson.pictures), lesson.thing, lesson.colour, lesson.middle)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rate.step()
        losses.append(value.item())
    return losses
