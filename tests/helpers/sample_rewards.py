"""Rewards of people we have not met, as factories that a worker process can import."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch


def first(scale: float = 1.0):
    return lambda media, prompts: scale * media.flatten(1)[:, 0]


def by_label():
    return lambda media, prompts, labels: labels.float() + media.flatten(1).mean(1)


class InLogits:
    """Says of itself what a difference of its scores means."""

    unit = 0.5

    def __call__(self, media, prompts):
        return media.flatten(1)[:, 0]


def threads():
    return lambda media, prompts: [torch.get_num_threads()] * len(media)


def process():
    return lambda media, prompts: [os.getpid()] * len(media)


def unbuildable():
    raise OSError("no weights here")


def sleepy(seconds: float, only: int | None = None):
    """Sleeps in each call, or in the call with that many samples alone."""

    def reward(media, prompts):
        if only is None or len(media) == only:
            time.sleep(seconds)
        return media.flatten(1)[:, 0]

    return reward


def deadly(only: int):
    """Dies as one does of too little memory, in the call with that many samples."""

    def reward(media, prompts):
        if len(media) == only:
            os._exit(9)
        return media.flatten(1)[:, 0]

    return reward


def messy(only: int, note: str):
    """Starts a program, leaves a folder, and hangs in the call with that many samples."""

    def reward(media, prompts):
        if len(media) == only:
            program = subprocess.Popen(["sleep", "600"])
            Path(note).write_text(f"{program.pid} {tempfile.mkdtemp()}")
            time.sleep(600)
        return media.flatten(1)[:, 0]

    return reward


def leaving(how: str):
    """Raises what is no `Exception`."""

    def reward(media, prompts):
        raise {"GeneratorExit": GeneratorExit, "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[how](3)

    return reward


def sluggish(note: str):
    """Takes forever to build, but for the first time; dies in every call."""
    if os.path.exists(note):
        time.sleep(600)
    Path(note).touch()
    return lambda media, prompts: os._exit(9)


class Network(torch.nn.Module):
    """A torch module as it is."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, media, prompts):
        return self.linear(media.flatten(1)[:, :2])[:, 0]


FACTORIES = {
    "first": first, "by_label": by_label, "threads": threads, "process": process, "unbuildable": unbuildable,
    "sleepy": sleepy, "deadly": deadly, "network": Network, "in_logits": InLogits,
    "messy": messy, "leaving": leaving, "sluggish": sluggish,
}  # fmt: skip
