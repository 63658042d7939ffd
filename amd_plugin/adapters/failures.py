"""A memory of failures in somebody else's trainer, where the conditions of samples are known as tensors only."""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.errors import RunError
from amd_plugin.maths.advantage_guidance import NONE, NONE_SHARE
from amd_plugin.objectives.failure_memory import FailureMemory, fit

log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """What the fake score is trained on in one turn.

    Attributes:
        x0: samples [B, ...].
        inputs: what belongs to them.
        remembered: which samples [B] are earlier failures, bool; None for none.
    """

    x0: Tensor
    inputs: Any
    remembered: Tensor | None = None

    def weight(self, weight: Tensor, outcomes: bool) -> Tensor:
        """Weights [B] in the fake score's loss, from those of the turn's own samples.

        With `outcomes` only a share of the turn's own samples is without one, and so a remembered one counts as much less.
        """
        return weight if self.remembered is None else weight.where(~self.remembered, NONE_SHARE if outcomes else 1.0)

    def outcome(self, outcome: int | Tensor) -> int | Tensor:
        """Outcomes of the samples, from those of the turn's own."""
        if self.remembered is None or not isinstance(outcome, Tensor):
            return outcome
        return outcome.where(~self.remembered, NONE)


class Failures(FailureMemory):
    """`FailureMemory` of samples with their conditions, of all ranks, on the CPU.

    Args:
        share: share of a batch that is replaced by remembered samples.
        bridge: bridge of the run, which has scored the samples.
    """

    def __init__(self, share: float, bridge: HostBridge):
        super().__init__(share, torch.device("cpu"))
        self._bridge, self._said = bridge, False

    @classmethod
    def of(cls, bridge: HostBridge) -> Failures | None:
        """A memory for the run of `bridge`; None where its objective asks for none, or has no reward by which samples fail."""
        share = bridge.objective.needs.replay
        return cls(share, bridge) if share and bridge.uses_reward else None

    def exchange(self, x0: Tensor, inputs: Any, rung: int | Tensor, *key: object, are_new: bool = True) -> Shown:
        """What `recall` gives for scored samples, which are remembered afterwards.

        Args:
            x0, inputs, rung, key: arguments of `recall`.
            are_new: False for samples that an earlier turn had too.
        """
        shown = self.recall(x0, inputs, rung, *key)
        if are_new:
            self.add(x0, inputs, rung)
        return shown

    def recall(self, x0: Tensor, inputs: Any, rung: int | Tensor, *key: object) -> Shown:
        """The turn's samples and inputs of this rank, some replaced by remembered ones.

        Args:
            x0: samples [B, ...] of the turn.
            inputs: nested lists and dicts, of which the tensors [B, ...] belong to the samples.
            rung: exit rung of all samples, as a number or a 0-dim tensor, or of each [B].
            key: keys of the random generator, the same on every rank.

        Raises:
            RunError: if `inputs` has tensors, none of which belongs to the samples.
        """
        values, in_place = _of_samples(x0, inputs)
        replaced, choice = self._bridge.uniform(2, "memory", *key)
        if any(not fit(kept, values) for kept in self._kept.values()):
            self._say_unlike("from one turn to another")
        shown, remembered = self.recalled(values, _rungs(rung, x0), (replaced, choice))
        return Shown(shown["samples"], in_place(shown), remembered)

    def add(self, x0: Tensor, inputs: Any, rung: int | Tensor) -> None:
        """Adds the worst samples of all ranks; arguments as of `recall`."""
        own, joined = _of_samples(x0, inputs)[0], self._bridge.ranks.joined
        if self._fit_together(own):
            values = {name: joined(value.detach().to(x0.device)) for name, value in own.items()}
            self.remember(values, self._bridge.signal_fields["batch_advantage"], joined(_rungs(rung, x0)))

    def _fit_together(self, own: Mapping[str, Tensor]) -> bool:
        """Whether the samples of all ranks have the same shapes; a gather of others would fail or wait for ever."""
        if self._bridge.ranks.count == 1:
            return True
        shapes = repr([(name, value.shape[1:], value.dtype) for name, value in own.items()])
        checksums = self._bridge.ranks.joined(torch.tensor([zlib.crc32(shapes.encode())], device=own["samples"].device))
        if not (alike := bool((checksums == checksums[0]).all())):
            self._say_unlike("from rank to rank")
        return alike

    def _say_unlike(self, where: str) -> None:
        """Warns once that failures are lost to the memory."""
        if not self._said:
            log.warning(
                "amd.memory_share: the shapes of samples or conditions differ %s, as those of texts without padding do; "
                "such failures are not replayed. Pad texts to one length, or leave memory_share out",
                where,
            )
            self._said = True

    def state_dict(self) -> dict[str, str]:
        """The memory, JSON-able: a safetensors file for each rung, in base 64."""
        return {str(rung): base64.b64encode(save(kept)).decode() for rung, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Restores what `state_dict` gave."""
        self._kept = {int(rung): load(base64.b64decode(kept)) for rung, kept in state.items()}


def _rungs(rung: int | Tensor, x0: Tensor) -> Tensor:
    if isinstance(rung, Tensor):
        return rung.to(x0.device).expand(len(x0))
    return torch.full((len(x0),), rung, device=x0.device)


def _of_samples(x0: Tensor, inputs: Any) -> tuple[dict[str, Tensor], Any]:
    """The tensors of the samples by name, and the function that puts such tensors in their places in `inputs`."""
    leaves, structure = tree_flatten(inputs)
    tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()}
    own = {name: leaf for name, leaf in tensors.items() if len(leaf) == len(x0)}
    if tensors and not own:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors.values())
        message = f"needs conditions of {len(x0)} samples each, and this host's have shapes {shapes}"
        raise RunError(f"amd.memory_share: {message}. Leave it out")
    in_place = lambda values: tree_unflatten([values.get(str(i), leaf) for i, leaf in enumerate(leaves)], structure)  # noqa: E731
    return {"samples": x0, **own}, in_place
