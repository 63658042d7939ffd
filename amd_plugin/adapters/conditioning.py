"""Conditions of a host's own fake score that the host does not pass to it: the exit rung and the outcome of each sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from amd_plugin.adapters.own_options import OUTCOME_LR
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import IF_OFFERED
from amd_plugin.maths.advantage_guidance import BAD, GOOD, NONE
from amd_plugin.models.family import Features
from amd_plugin.models.step_conditioning import OUTCOME, RUNG_LR, RUNGS, Conditions, Tables, add_tables, tables_of
from amd_plugin.plugins import PluginManager

# Classes of networks that hosts train and no family of ours describes -> the module whose output embeds the time.
PLACES = {
    "WanTransformer3DModel": "condition_embedder.time_embedder",  # diffusers' and FastVideo's
    "CausalWanTransformer3DModel": "condition_embedder.time_embedder",
    "WanModel": "time_embedding",  # the original code, in LightX2V
    "CausalWanModel": "time_embedding",
    "QwenImageTransformer2DModel": "time_text_embed.timestep_embedder",
    "FluxTransformer2DModel": "time_text_embed.timestep_embedder",
    "Flux2Transformer2DModel": "time_guidance_embed.timestep_embedder",
    "LongCatImageTransformer2DModel": "time_embed.timestep_embedder",
    "CogVideoXTransformer3DModel": "time_embedding",
    "UNet2DConditionModel": "time_embedding",
    "SongUNet": "map_layer1",  # EDM's, in FastGen
    "DhariwalUNet": "map_layer1",
}

LARGEST = 32  # exponent of a gain, so that no rate overflows


class FakeScoreConditions:
    """The tables of rungs and outcomes in the networks of a host's fake score.

    Args:
        rungs: number of exit rungs of a table of them; 0 for no such table.
        outcomes: whether there is a table of outcomes; `IF_OFFERED`: where the network has a place for it.
        plugins: manager in which families are looked up.
        where: the options' place in the user's configuration, for errors.
        outcome_lr: the learning rate of the table of outcomes.

    Raises:
        InputError: for a table of a single rung.
    """

    def __init__(
        self, rungs: int, outcomes: bool | str, plugins: PluginManager, where: str = "amd", outcome_lr: float = OUTCOME_LR
    ):  # fmt: skip
        if rungs == 1:
            raise InputError(f"{where}.rung_conditioning: needs a student of several steps, and this one has one. Leave it out")
        self._rungs, self._outcomes = rungs, outcomes
        self._plugins, self._where, self._outcome_lr = plugins, where, outcome_lr
        self._networks: list[nn.Module] = []

    @property
    def takes_outcomes(self) -> bool:
        """Whether a network has a table of outcomes."""
        return bool(self._tables(OUTCOME))

    def add_to(self, network: nn.Module, learning_rate: Any = None) -> None:
        """Adds tables to `network`, before its optimizer is built and before DDP wraps it; it may be sharded by FSDP2.

        Args:
            network: a network of the fake score.
            learning_rate: the rate of its optimizer as the host's configuration has it, a number or its text, with which the
                tables learn at their own; None for one that is unknown, and then at the optimizer's.

        Raises:
            InputError: for a network whose time embedding no family names, unless all it lacks is `IF_OFFERED`; and
                later, when the network loads a checkpoint with other tables.
        """
        network.register_load_state_dict_pre_hook(functools.partial(_refuse_other_tables, self._where))
        if not (self._rungs or self._outcomes):
            return
        places = time_embeddings(network, self._plugins)
        if places is None:
            if not self._rungs and self._outcomes == IF_OFFERED:
                return
            option = "rung_conditioning" if self._rungs else "advantage_guidance"
            message = f"nobody says where a {_class_names(network)[0]} embeds the time (time_embeddings of a family)"
            raise InputError(f"{self._where}.{option}: {message}. Leave it out")
        gains = [_gain(rate, learning_rate) for rate in (self._outcome_lr, RUNG_LR)]
        add_tables(network, "fake_score", Conditions(lambda _: places, self._rungs, bool(self._outcomes), *gains))
        self._networks.append(network)
        for part in (RUNGS, OUTCOME):
            if (tables := tables_of(network, part)) is not None:
                _place_like(tables, network)
        self.choose(None)

    def parameters(self) -> list[nn.Parameter]:
        """The tables' parameters, which may have a learning rate of their own."""
        return [value for part in (RUNGS, OUTCOME) for tables in self._tables(part) for value in tables.parameters()]

    def choose(self, rung: int | Tensor | None, outcome: int | Tensor = NONE) -> None:
        """Sets rung and outcome of the fake score's samples from now on, for activations that are recomputed later too.

        Args:
            rung: one for all samples, or one for each [B]; None for none.
            outcome: likewise.
        """
        for tables in self._tables(OUTCOME):
            tables.choose(outcome)
        for tables in self._tables(RUNGS):
            tables.choose(rung)

    @torch.no_grad()
    def contrast(self, rung: int | Tensor | None, predict: Callable[[], Tensor]) -> dict[str, Tensor]:
        """`Signals.fake_bad` and `fake_good` by two calls of `predict`; empty without a table of outcomes.

        Args:
            rung: rung of the samples.
            predict: the fake score's prediction of x0 [B, ...] of the turn, made again.
        """
        predictions = {}
        for name, outcome in (("fake_bad", BAD), ("fake_good", GOOD)) if self.takes_outcomes else ():
            self.choose(rung, outcome)
            predictions[name] = predict()
        self.choose(rung)
        return predictions

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """A context in which the networks have the parameters of the host's own, and no others."""
        taken = [(network, part, network._modules.pop(part)) for network in self._networks for part in (RUNGS, OUTCOME)
                 if part in network._modules]  # fmt: skip
        try:
            yield
        finally:
            for network, part, tables in taken:
                network._modules[part] = tables

    def _tables(self, part: str) -> list[Tables]:
        return [tables for network in self._networks if (tables := tables_of(network, part)) is not None]


def _gain(rate: float, of_optimizer: Any) -> float:
    """The power of two of at least 1 by which the rate `of_optimizer` comes nearest to `rate`; 1 for one that is no rate."""
    try:
        known = float(of_optimizer)
    except (TypeError, ValueError):
        return 1.0
    if not (known > 0 and math.isfinite(known)):
        return 1.0
    return 2.0 ** min(max(0, round(math.log2(rate) - math.log2(known))), LARGEST)


def time_embeddings(network: nn.Module, plugins: PluginManager) -> Sequence[Features] | None:
    """The modules in `network` that embed the time: by a family of the plugins, or by `PLACES`; None for an unknown network."""
    families = {family.network: family for family in plugins.families().values() if hasattr(family, "time_embeddings")}
    for module in network.modules():
        for name in _class_names(module):
            if name in PLACES:
                embedder = module.get_submodule(PLACES[name])
                width = [value.shape[0] for value in embedder.parameters() if value.dim() == 2][-1]
                return [Features(embedder, width, -1)]
            if name in families:
                found: Sequence[Features] = families[name]({}, dict(getattr(module, "config", {}))).time_embeddings(module)
                return found
    return None


def _refuse_other_tables(
    where: str, network: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:  # fmt: skip
    """Raises InputError for weights of a fake score with other tables: the host's own message would name tensors."""
    for part, option in ((RUNGS, "rung_conditioning"), (OUTCOME, "advantage_guidance")):
        tables = tables_of(network, part)
        own = {} if tables is None else {name: tuple(value.shape) for name, value in tables.state_dict().items()}
        start = f"{prefix}{part}."
        saved = {name.removeprefix(start): tuple(value.shape) for name, value in state.items() if name.startswith(start)}
        if own != saved:
            rows = [next(iter(shapes.values()))[0] if shapes else 0 for shapes in (saved, own)]
            message = f"the checkpoint's fake score has a table of {rows[0]} rows, and this run's one of {rows[1]}"
            raise InputError(f"{where}.{option}: {message}. Resume with the options of the run, or start a new one")


def _class_names(module: nn.Module) -> list[str]:
    """Names of the module's class and of its bases: FSDP2 and DDP put classes of their own before it."""
    return [base.__name__ for base in type(module).__mro__]


def _place_like(tables: Tables, network: nn.Module) -> None:
    """Moves `tables` to the device and dtype of `network`, and shards them if FSDP2 has sharded it already.

    A host that shards it later needs one dtype for all parameters.
    """
    own = {id(value) for value in tables.parameters()}
    example: Any = next(value for value in network.parameters() if id(value) not in own)
    if isinstance(example, DTensor):
        tables.to(example.device)
        for table in tables.tables:
            fully_shard(table, mesh=example.device_mesh)
    else:
        tables.to(example.device, example.dtype)
