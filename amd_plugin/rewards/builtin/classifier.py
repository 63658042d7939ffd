"""The embedded tasks' own reward: how clearly a classifier recognises the class that was asked for."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from amd_plugin.rewards.protocol import LOGITS


class ClassifierReward:
    """``log(p + floor)``, p the label's probability under the task's classifier, which has a class "none of them" too.

    Args:
        task: running task, filled in by the host.
        floor: probability below which differences hardly count, as they only show how far the classifier extrapolates.
            Without a floor one far outlier sets the spread of its group and hides every other failure in it.
        flip_sign: whether failure is rewarded instead: the control in which AMD must do harm.
    """

    differentiable = True
    version = "1"
    unit = LOGITS

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
        scores: Tensor = self._sign * (p + self._floor).log()
        return scores
