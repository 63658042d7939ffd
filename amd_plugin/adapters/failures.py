"""A memory of failures in somebody else's trainer: the student's worst samples, replayed to the fake score.

It does what `amd_plugin.host.training.failure_memory` does. A host's conditions are known as tensors only, so each sample is
kept with its own. Every rank holds the same memory.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.errors import RunError

WORST = 8  # an eighth of each batch
SIZE, BYTES = 384, 2**28  # the most that is kept of each exit rung: samples, and bytes


class Failures:
    """The latest of the worst samples of all ranks, with their conditions, separate for each exit rung.

    Args:
        share: share of a batch that is replaced by remembered samples.
        bridge: bridge of the run, which has scored the samples.
    """

    def __init__(self, share: float, bridge: HostBridge):
        self._share, self._bridge = share, bridge
        self._kept: dict[int, dict[str, Tensor]] = {}

    def exchange(
        self, x0: Tensor, inputs: Any, rung: int | Tensor, *key: object, are_new: bool = True
    ) -> tuple[Tensor, Any, Tensor]:
        """What `recall` gives for scored samples, which are remembered afterwards.

        Args:
            x0, inputs, rung, key: arguments of `recall`.
            are_new: False for samples that an earlier turn had too.
        """
        recalled = self.recall(x0, inputs, rung, *key)
        if are_new:
            self.add(x0, inputs, rung)
        return recalled

    def recall(self, x0: Tensor, inputs: Any, rung: int | Tensor, *key: object) -> tuple[Tensor, Any, Tensor]:
        """Samples [B, ...] and inputs of this rank, some replaced by remembered ones, and which [B] bool.

        Args:
            x0: samples [B, ...] of the turn.
            inputs: nested lists and dicts, of which the tensors [B, ...] belong to the samples.
            rung: exit rung of all samples, or of each [B].
            key: keys of the random generator, the same on every rank.

        Raises:
            RunError: if `inputs` has tensors, none of which belongs to the samples.
        """
        draws = self._bridge.uniform(2, "memory", *key)
        replaced, choice = draws[0] < self._share, draws[1]
        rungs = _rungs(rung, x0)
        values, rest = _of_samples(x0, inputs)
        remembered = torch.zeros_like(replaced)
        for of_rung, kept in self._kept.items():
            # Conditions of another length, such as texts that are not padded, fit no other batch.
            if kept.keys() != values.keys() or any(kept[name].shape[1:] != values[name].shape[1:] for name in kept):
                continue
            here = replaced & (rungs == of_rung)
            chosen = (choice * len(kept["x0"])).long().clamp(max=len(kept["x0"]) - 1)
            for name, value in values.items():
                stored = kept[name].to(value)[chosen.to(kept[name].device)]
                values[name] = torch.where(here.reshape(-1, *[1] * (value.dim() - 1)), stored.to(value.device), value)
            remembered = remembered | here
        return values["x0"], rest(values), remembered

    def add(self, x0: Tensor, inputs: Any, rung: int | Tensor) -> None:
        """Adds the worst eighth of the samples of all ranks, as far as their advantage is below 0; arguments as of `recall`."""
        advantage = self._bridge.signal_fields["batch_advantage"]
        worst = advantage.topk(max(1, len(advantage) // WORST), largest=False).indices
        own = _of_samples(x0, inputs)[0]
        if not self._fit_together(own):
            return
        finite = self._bridge.joined(torch.isfinite(x0).flatten(1).all(1))
        worst = worst[(advantage[worst] < 0) & finite[worst]]
        values = {name: self._bridge.joined(value.detach().to(x0.device))[worst].cpu() for name, value in own.items()}
        rungs = self._bridge.joined(_rungs(rung, x0))[worst].cpu()
        for of_rung in rungs.unique().tolist():
            new = {name: value[rungs == of_rung] for name, value in values.items()}
            old = self._kept.get(of_rung, {})
            fits = old.keys() == new.keys() and all(old[name].shape[1:] == new[name].shape[1:] for name in new)
            size = min(SIZE, max(1, BYTES // sum(value[0].nbytes for value in new.values())))
            self._kept[of_rung] = {name: torch.cat((old[name], value) if fits else (value,))[-size:].clone()
                                   for name, value in new.items()}  # fmt: skip

    def _fit_together(self, own: Mapping[str, Tensor]) -> bool:
        """Whether the samples of all ranks have the same shapes; a gather of others would fail or wait for ever."""
        shapes = repr([(name, value.shape[1:], value.dtype) for name, value in own.items()])
        checksums = self._bridge.joined(torch.tensor([zlib.crc32(shapes.encode())], device=own["x0"].device))
        return bool((checksums == checksums[0]).all())

    def state_dict(self) -> dict[str, str]:
        """The memory, JSON-able: a safetensors file for each rung, in base 64."""
        return {str(rung): base64.b64encode(save(kept)).decode() for rung, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Restores what `state_dict` gave."""
        self._kept = {int(rung): load(base64.b64decode(kept)) for rung, kept in state.items()}


def _rungs(rung: int | Tensor, x0: Tensor) -> Tensor:
    return rung.to(x0.device) if isinstance(rung, Tensor) else torch.full((len(x0),), rung, device=x0.device)


def _of_samples(x0: Tensor, inputs: Any) -> tuple[dict[str, Tensor], Any]:
    """The tensors of the samples by name, and the function that puts such tensors in their places in `inputs`."""
    leaves, structure = tree_flatten(inputs)
    tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()}
    own = {name: leaf for name, leaf in tensors.items() if len(leaf) == len(x0)}
    if tensors and not own:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors.values())
        message = f"needs conditions of {len(x0)} samples each, and this host's have shapes {shapes}"
        raise RunError(f"amd.memory_share: {message}. Leave it out")
    rebuild = lambda values: tree_unflatten([values.get(str(i), leaf) for i, leaf in enumerate(leaves)], structure)  # noqa: E731
    return {"x0": x0, **own}, rebuild
