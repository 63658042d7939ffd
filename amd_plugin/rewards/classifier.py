"""The embedded tasks' own reward: how clearly a classifier sees what was asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ClassifierReward:
    """``log p(label | media)`` by the task's classifier, which also knows "none of them"; differentiable.

    Args:
        task: the running task, filled in by the host.
        flip_sign: reward failure instead: the control in which AMD must do harm.
    """

    differentiable = True

    def __init__(self, task: Any, flip_sign: bool = False):
        self._classifier = task.classifier()
        self._sign = -1.0 if flip_sign else 1.0

    def __call__(self, media: Tensor, prompts: Sequence[str], labels: Tensor) -> Tensor:
        """[B] in (-inf, 0], or its negative."""
        self._classifier.to(media.device)
        log_p = torch.log_softmax(self._classifier(media.float()), 1)
        return self._sign * log_p.gather(1, labels[:, None])[:, 0]
