"""The embedded tasks' own reward: how clearly a classifier sees what was asked for."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from amd_plugin.rewards.protocol import LOGITS, Traits


class ClassifierReward:
    """``log(p + floor)``, p the probability of the label by the task's classifier, which also knows "none of them".

    Args:
        task: the running task, filled in by the host.
        floor: below it, how small p is says only how far the classifier extrapolates; without one, a single far outlier
            makes the spread of its group and hides every other failure in it.
        flip_sign: reward failure instead: the control in which AMD must do harm.
    """

    differentiable, media, version, unit = Traits(differentiable=True, version="1", unit=LOGITS)

    def __init__(self, task: Any, floor: Annotated[float, Field(ge=0, lt=1)] = 0.01, flip_sign: bool = False):
        self._classifier = task.classifier()
        self._device = torch.device("cpu")
        self._floor = floor
        self._sign = -1.0 if flip_sign else 1.0

    def __call__(self, media: Tensor, prompts: Sequence[str], labels: Tensor) -> Tensor:
        """[B] in [log(floor), log(1 + floor)], or its negative."""
        if media.device != self._device:
            self._classifier, self._device = self._classifier.to(media.device), media.device
        p = self._classifier(media.float()).softmax(1).gather(1, labels[:, None])[:, 0]
        return self._sign * (p + self._floor).log()
