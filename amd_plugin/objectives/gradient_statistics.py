"""Running lengths of two gradients on a student's samples: that of matching, and that of a reward.

Their quotient is the weight at which one is as long as the other. The matching loss is a mean over a sample's elements and a
reward is one number, so that no weight is right for two tasks.
"""

import copy

import torch
from torch import Tensor

from amd_plugin.maths.diagnostics import gradient_of

RATIO = 0.3  # of the length of matching: on scenes a gain in score at a smaller distance than DMD's


class GradientStatistics:
    """Running means over student turns of the lengths of both gradients.

    Attributes:
        turn: sums [3] over this process's samples of the student turn under way, the last one their number. A host averages
            them over processes.
        has_turn: whether there are such sums.
        running: running means [2] over turns, of the lengths of the gradients of matching and of the reward.
    """

    MOMENTUM = 0.95

    def __init__(self) -> None:
        self.turn = torch.zeros(3, dtype=torch.float64)
        self.running = torch.zeros(2, dtype=torch.float64)
        self.has_turn = False

    def update(self, reward: Tensor, x0: Tensor, direction: Tensor) -> None:
        """Adds a micro-batch; a sample whose values are not finite counts as none, as does a reward without a graph.

        Args:
            reward: rewards [B], with their graph.
            x0: student samples [B, ...].
            direction: direction [B, ...] of the matching loss, a mean over the elements of a sample.
        """
        if (gradient := gradient_of(reward, x0)) is None:
            return
        matching, length = direction.flatten(1).norm(dim=1) / direction[0].numel(), gradient.flatten(1).norm(dim=1)
        values = torch.stack((matching, length.to(matching), torch.ones_like(matching)), 1).double()
        values = torch.where(values.isfinite().all(1, keepdim=True), values, 0.0)
        self.turn = self.turn.to(values.device) + values.sum(0)
        self.has_turn = True

    def finish_turn(self) -> None:
        """Adds the means of the turn, over all processes by now, to the running means."""
        if not self.has_turn:  # before the device is asked
            return
        turn, self.has_turn = self.turn.cpu(), False
        self.running, self.turn = self.MOMENTUM * self.running + turn[:2] / turn[2].clamp(min=1), torch.zeros(3).double()

    def weight(self, ratio: float) -> float:
        """The weight at which the reward's gradient is `ratio` as long as that of matching; 0 before the first turn."""
        matching, reward = self.running.tolist()
        return ratio * matching / reward if reward > 0 else 0.0

    def state_dict(self) -> list[float]:
        """JSON-able running means, with the turn under way in them. Changes nothing, since hosts save on one process alone."""
        finished = copy.copy(self)
        finished.finish_turn()
        running: list[float] = finished.running.tolist()
        return running

    def load_state_dict(self, state: list[float]) -> None:
        """Restores what `state_dict` gave."""
        self.running = torch.tensor(state, dtype=torch.float64)
