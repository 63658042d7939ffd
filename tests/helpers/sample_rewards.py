"""Rewards of people we have not met, as factories that a worker process can import."""

import os
import time

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
}  # fmt: skip
