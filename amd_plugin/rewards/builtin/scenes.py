"""The reward of scenes: how sure a detector is that a picture shows what was asked for."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from amd_plugin.errors import OptionError
from amd_plugin.rewards.protocol import LOGITS


class SceneReward:
    """The log probability, in nats, that a scene shows what its prompt asks for and nothing else; bounded below.

    Args:
        task: running task, filled in by the host.
        judge: the detector: ``a``, which no held-out metric uses but `gap`; or ``b``, which judges, for comparison only.
        flip_sign: whether failure is rewarded instead: the control in which AMD must do harm.

    Raises:
        OptionError: for another task.
    """

    differentiable = True
    media = "image"
    version = "1"
    unit = LOGITS

    def __init__(self, task: Any, judge: Literal["a", "b"] = "a", flip_sign: bool = False):
        if not hasattr(task, "verdict"):
            raise OptionError("name", f"the reward scenes reads scenes only; data.task is {task.name}")
        task.make_judges()  # here, and not at the first call, in the middle of an update
        self._task, self._judge = task, judge
        self._sign = -1.0 if flip_sign else 1.0

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] in [-16, 0], or its negative."""
        soft: Tensor = self._task.verdict(self._judge, media, prompts).soft
        return self._sign * soft
