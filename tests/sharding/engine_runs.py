"""Run in every process of a group: several runs after each other, ``[[optimizer, arguments, output, resume], ...]`` as JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.helpers.tiny_wan import train_here

ADAM = torch.optim.Adam


def sgd(parameters, lr, betas, fused):
    """Adam divides the rounding errors of small gradients by themselves; this does not."""
    return torch.optim.SGD(parameters, lr)


def train_all(runs):
    for optimizer, arguments, output, resume in runs:
        torch.optim.Adam = sgd if optimizer == "sgd" else ADAM
        AcceleratorState._reset_state()  # it keeps the first run's precision
        try:
            train_here(arguments, Path(output), resume)
        finally:
            torch.optim.Adam = ADAM


if __name__ == "__main__":
    Accelerator.end_training = lambda self: None  # it would end the process group
    train_all(json.loads(sys.argv[1]))
