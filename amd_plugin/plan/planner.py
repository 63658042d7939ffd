"""A plan of a recipe on so many GPUs, and the changes that would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amd_plugin.config import RecipeConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.models.pretrained import DTYPES
from amd_plugin.plan import memory, traffic
from amd_plugin.plan.calls import sample_bytes, sizes, traces
from amd_plugin.plan.memory import RESERVED, Row
from amd_plugin.plan.outline import Outline, build_autoencoder, clip_parameters, outline
from amd_plugin.plan.traffic import Machine
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe


@dataclass
class Plan:
    """Numbers of one GPU, in bytes, operations and seconds.

    Attributes:
        recipe, gpus, gpu_memory: what was asked for.
        source: where the model's configs come from.
        rows: by role; of `student` and `fake_score` the activations of their turns.
        phases: most bytes in each phase of a run, all roles together.
        flops, received: per cycle, by role.
        seconds: per cycle, see `traffic.seconds`.
        notes: what is not in the numbers.
        changes: (what to change, most bytes then), one on top of the other; the last one fits, if any does.
    """

    recipe: str
    gpus: int
    gpu_memory: int
    source: str
    rows: dict[str, Row]
    phases: dict[str, int]
    flops: dict[str, float]
    received: dict[str, float]
    seconds: dict[str, float]
    notes: list[str]
    changes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Most bytes at any time, with what is reserved."""
        return max(self.phases.values()) + RESERVED

    @property
    def fits(self) -> bool:
        """Whether that is in the GPU."""
        return self.peak <= self.gpu_memory

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rows = {name: row.as_dict() for name, row in self.rows.items()}
        numbers = {"rows": rows, "phases": self.phases, "reserved": RESERVED, "peak": self.peak, "fits": self.fits}
        asked = {"recipe": self.recipe, "gpus": self.gpus, "gpu_memory": self.gpu_memory, "source": self.source}
        cycle = {"flops": self.flops, "received": self.received, "seconds": self.seconds}
        changes = [{"change": change, "peak": peak} for change, peak in self.changes]
        return {**asked, **numbers, "cycle": cycle, "notes": self.notes, "changes": changes}


def plan(recipe: Recipe, plugins: PluginManager, gpus: int, gpu_memory: int, machine: Machine | None = None) -> Plan:
    """Plans `recipe` on `gpus` GPUs of `gpu_memory` bytes.

    Raises:
        InputError: for a batch that the GPUs cannot share, or a model whose configs cannot be read.
    """
    config = recipe.config
    train = config.train
    shares = gpus * train.accumulation
    if gpus < 1 or train.batch_size % shares:
        what = f"a batch of {train.batch_size} in {train.accumulation} parts (train.batch_size, train.accumulation)"
        raise InputError(f"--gpus: {what} must share out evenly, got {gpus}. {_possible(config)}")
    if gpu_memory <= RESERVED:
        raise InputError(
            f"--gpu-memory: must be more than the {RESERVED / 1e9:g} GB that are reserved, got {gpu_memory / 1e9:g}"
        )
    found = outline(config.model, recipe.task, train.seed, plugins.families())
    needs = recipe.objective.needs
    guided_apart = needs.uncond and needs.guidance_range is not None
    of_roles = sizes(found, config)
    made = traces(found, config, train.batch_size // shares, needs.uncond)
    rows, notes = _rows(found, config, of_roles, gpus, needs.reward)
    activations = memory.turns(
        made, config, needs.reward, memory.media_bytes(found.size), train.batch_size // gpus
    )  # fmt: skip
    for role, most in activations.items():
        rows[role].activations = most
    rows["batch"] = Row(buffers=memory.joined_batch(config, sample_bytes(found), guided_apart))
    if needs.discriminator is not None:
        notes.append("the discriminator, a small head on the fake score's features")
    times = traffic.calls_of(config, needs.reward, guided_apart)
    operations, received = traffic.flops(times, made), traffic.received(times, of_roles, config, gpus)
    moved = traffic.from_memory(times, made, of_roles)
    seconds = traffic.seconds(sum(operations.values()), sum(received.values()), moved, machine or Machine())
    phases = _phases(rows, config, found)
    return Plan(recipe.name, gpus, gpu_memory, found.source, rows, phases, operations, received, seconds, notes)


def plan_with_changes(
    load: Callable[[Sequence[str]], Recipe], plugins: PluginManager, gpus: int, gpu_memory: int, machine: Machine | None = None
) -> Plan:
    """The plan of ``load(())``; where it does not fit, with changes, each of them planned like the recipe itself.

    Args:
        load: the recipe with further overrides.
    """
    first = load(())
    found = plan(first, plugins, gpus, gpu_memory, machine)
    taken: list[str] = []
    best = found
    for change in _changes(first.config, gpus):
        if best.fits:
            break
        try:
            tried = plan(load([*taken, *change]), plugins, gpus, gpu_memory, machine)
        except InputError:  # not for this recipe or network
            continue
        if tried.peak < best.peak:
            taken, best = [*taken, *change], tried
            found.changes.append((" ".join(f"--set {override}" for override in change), tried.peak))
    more = gpus
    while not best.fits and first.config.distributed.trained != "none" and more < 1024:
        more *= 2
        try:
            best = plan(load(taken), plugins, more, gpu_memory, machine)
        except InputError:
            break
        if best.fits:
            found.changes.append((f"--gpus {more}", best.peak))
    return found


def _rows(found: Outline, config: RecipeConfig, of_roles: Any, gpus: int, rewarded: bool) -> tuple[dict[str, Row], list[str]]:
    shared, distributed = config.model.roles == "shared_base", config.distributed
    how = {"how": distributed.trained, "gpus": gpus, "shared": shared}
    rows = {
        "student": memory.trained_row(of_roles["student"], averaged=True, **how),
        "fake_score": memory.trained_row(of_roles["fake_score"], averaged=False, **how),
        "teacher": memory.teacher_row(of_roles["teacher"], distributed.teacher, gpus),
    }
    notes = []
    if found.autoencoder is not None:
        rows["autoencoder"] = Row(4 * sum(p.numel() for p in build_autoencoder(found).parameters()))
        encoders = sum(found.encoders.values()) * DTYPES[config.model.dtype].itemsize
        rows["text_encoder"] = Row(0 if config.model.keep_embeddings else encoders)
        if config.model.decoder is not None:
            notes.append(f"the decoder {config.model.decoder}; decoding is counted as the pipeline's own autoencoder's")
    rows["rewards"] = Row()
    for reward in config.rewards if rewarded else ():
        size = _reward_bytes(reward)
        rows["rewards"].weights += size or 0
        notes += [] if size is not None else [f"the weights of reward {reward.name}"]
    if rewarded:
        notes.append("what rewards compute")
    return rows, notes


def _reward_bytes(reward: RewardConfig) -> int | None:
    if reward.name in ("random", "constant"):
        return 0
    path = reward.options.get("path")
    if reward.name != "clip" or not isinstance(path, str):
        return None
    count = clip_parameters(path, reward.options.get("revision"))
    return None if count is None else count * DTYPES[reward.options.get("dtype", "fp32")].itemsize


def _phases(rows: dict[str, Row], config: RecipeConfig, found: Outline) -> dict[str, int]:
    lasting = sum(row.lasting for row in rows.values())
    engines = config.distributed.trained != "none"
    kept = sum(rows[role].gradients for role in ("student", "fake_score"))
    phases = {}
    for role in ("fake_score", "student"):
        gradients = kept if engines else rows[role].gradients
        phases[f"{role} turn"] = lasting + gradients + rows[role].activations
    if found.encoders and config.model.keep_embeddings:
        encoders = sum(found.encoders.values()) * DTYPES[config.model.dtype].itemsize
        before = sum(row.weights + row.average + row.buffers for row in rows.values()) - rows["batch"].buffers
        phases["embedding prompts"] = before + encoders
    return phases


def _changes(config: RecipeConfig, gpus: int) -> Iterator[list[str]]:
    """Overrides in order of what they cost: recomputation, smaller parts, traffic, host traffic, another kind of training."""
    if not config.train.gradient_checkpointing:
        yield ["train.gradient_checkpointing=true"]
    if config.train.batch_size // gpus > config.train.accumulation:
        yield [f"train.accumulation={config.train.batch_size // gpus}"]
    if gpus > 1 and config.distributed.teacher == "none":
        yield ["distributed.teacher=zero3"]
    if gpus > 1 and config.model.roles == "separate":
        for stage in {"none": ("zero2", "zero3"), "zero2": ("zero3",), "zero3": ()}[config.distributed.trained]:
            yield [f"distributed.trained={stage}"]
    if config.model.roles == "separate":
        if config.distributed.teacher != "zero3_offload":
            yield ["distributed.teacher=zero3_offload"]
        yield ["model.roles=shared_base", "distributed.trained=none"]


def _possible(config: RecipeConfig) -> str:
    parts = config.train.batch_size // config.train.accumulation
    fitting = [str(n) for n in range(1, parts + 1) if parts % n == 0]
    return f"It can be {', '.join(fitting[:12])}{', ...' if len(fitting) > 12 else ''}, or set train.accumulation"
