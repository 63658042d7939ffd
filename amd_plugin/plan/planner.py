"""The plan of a recipe on a number of GPUs, and the changes that would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amd_plugin.config import RecipeConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import Needs
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.models.step_conditioning import conditions
from amd_plugin.plan import memory, traffic
from amd_plugin.plan.calls import Tensors, decode_with_gradient, sample_bytes, sizes, traces
from amd_plugin.plan.memory import RESERVED, Row
from amd_plugin.plan.model_spec import ModelSpec, build_autoencoder, clip_parameters, model_spec
from amd_plugin.plan.traffic import Machine
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe


@dataclass
class Plan:
    """Estimates for one GPU, in bytes, operations and seconds.

    Attributes:
        recipe: name of the recipe.
        gpus: number of GPUs.
        gpu_memory: memory per GPU in bytes.
        source: origin of the model's configs, in words.
        rows: memory by role; the activations of `student` and `fake_score` are those of their turns.
        phases: most bytes in each phase of a run, all roles together.
        flops: operations per cycle, by role.
        received: bytes received per cycle, by role.
        seconds: duration of a cycle, see `traffic.seconds`.
        notes: parts that are not in the numbers.
        updates: number of cycles of the whole run, one student update each.
        changes: changes to the recipe with the most bytes after each, one on top of the other; the last fits, if any does.
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
    updates: int
    changes: list[tuple[str, int]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Most bytes at any time, including the reserve."""
        return max(self.phases.values()) + RESERVED

    @property
    def fits(self) -> bool:
        """Whether the peak fits the GPU, without what `notes` leave out."""
        return self.peak <= self.gpu_memory

    @property
    def hours(self) -> tuple[float, float]:
        """Least duration of the whole run in hours, with traffic that overlaps computation, and without."""
        fastest, slowest = (self.seconds[name] for name in ("overlapped", "one after the other"))
        return self.updates * fastest / 3600, self.updates * slowest / 3600

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values."""
        rows = {name: row.as_dict() for name, row in self.rows.items()}
        numbers = {"rows": rows, "phases": self.phases, "reserved": RESERVED, "peak": self.peak, "fits": self.fits}
        request = {"recipe": self.recipe, "gpus": self.gpus, "gpu_memory": self.gpu_memory, "source": self.source}
        cycle = {"flops": self.flops, "received": self.received, "seconds": self.seconds}
        hours = dict(zip(("overlapped", "one after the other"), self.hours, strict=True))
        run = {"updates": self.updates, "hours": hours, "gpu_hours": {name: h * self.gpus for name, h in hours.items()}}
        changes = [{"change": change, "peak": peak} for change, peak in self.changes]
        return {**request, **numbers, "cycle": cycle, "run": run, "notes": self.notes, "changes": changes}


def plan(recipe: Recipe, plugins: PluginManager, gpus: int, gpu_memory: int, machine: Machine | None = None) -> Plan:
    """Plans `recipe` on `gpus` GPUs of `gpu_memory` bytes.

    Raises:
        InputError: for a batch that the GPUs cannot share, or a model whose configs cannot be read.
    """
    config = recipe.config
    train = config.train
    shares = gpus * train.accumulation
    if gpus < 1 or train.batch_size % shares:
        message = f"a batch of {train.batch_size} in {train.accumulation} parts (train.batch_size, train.accumulation)"
        raise InputError(f"--gpus: {message} must share out evenly, got {gpus}. {_possible(config)}")
    if gpu_memory <= RESERVED:
        raise InputError(
            f"--gpu-memory: must be more than the {RESERVED / 1e9:g} GB that are reserved, got {gpu_memory / 1e9:g}"
        )
    spec = model_spec(config.model, recipe.task, train.seed, plugins.families())
    needs = recipe.objective.needs
    guided_apart = needs.uncond and needs.guidance_range is not None
    roles = sizes(spec, config, outcomes=needs.fake_score_outcome)
    tables = conditions(config.model, spec.family, outcomes=needs.fake_score_outcome)
    calls = traces(spec, config, train.batch_size // shares, needs.uncond)
    if needs.reward_gradient:
        calls["decode with gradient"] = decode_with_gradient(spec, train.batch_size // shares)
    workload = _Workload(config, spec, gpus, needs)
    rows, notes = _rows(workload, roles)
    media = memory.media_bytes(spec.size)
    activations = memory.turns(calls, config, needs, media, train.batch_size // gpus)
    for role, most in activations.items():
        rows[role].activations = most
    kept = memory.kept_samples(config, sample_bytes(spec), train.batch_size // gpus)
    kept += memory.failures(config, sample_bytes(spec)) if needs.replay else 0
    rows["batch"] = Row(buffers=memory.whole_batch(config, sample_bytes(spec), guided_apart) + kept)
    if needs.discriminator is not None:
        notes.append("the discriminator, a small head on the fake score's features")
    if (needs.discriminator is not None and train.real == "data") or train.rollout == "data":
        notes.append("the real samples and their encoding")
    counts = traffic.calls_of(config, needs, outcomes=tables is not None and tables.outcomes)
    operations, received = traffic.flops(counts, calls), traffic.received(counts, roles, config, gpus)
    moved = traffic.from_memory(counts, calls, roles)
    seconds = traffic.seconds(sum(operations.values()), sum(received.values()), moved, machine or Machine())
    phases = _phases(workload, rows)
    return Plan(recipe.name, gpus, gpu_memory, spec.source, rows, phases, operations, received, seconds, notes, train.max_steps)


def plan_with_changes(
    load: Callable[[Sequence[str]], Recipe], plugins: PluginManager, gpus: int, gpu_memory: int, machine: Machine | None = None
) -> Plan:
    """The plan of ``load(())``; where it does not fit, with changes, each planned like the recipe itself.

    Args:
        load: function that loads the recipe with further overrides.
        plugins: plugins that provide objectives and families.
        gpus: number of GPUs.
        gpu_memory: memory per GPU in bytes.
        machine: speed of the GPUs; an H100 by default.
    """
    recipe = load(())
    original = plan(recipe, plugins, gpus, gpu_memory, machine)
    taken: list[str] = []
    best = original
    for change in _changes(recipe.config, gpus):
        if best.fits:
            break
        try:
            changed = plan(load([*taken, *change]), plugins, gpus, gpu_memory, machine)
        except InputError:  # impossible for this recipe or network
            continue
        if changed.peak < best.peak:
            taken, best = [*taken, *change], changed
            original.changes.append((" ".join(f"--set {override}" for override in change), changed.peak))
    more = gpus
    while not best.fits and recipe.config.distributed.trained != "none" and more < 1024:
        more *= 2
        try:
            best = plan(load(taken), plugins, more, gpu_memory, machine)
        except InputError:
            break
        if best.fits:
            original.changes.append((f"--gpus {more}", best.peak))
    return original


@dataclass(frozen=True)
class _Workload:
    """A recipe, its model, and where it runs.

    Attributes:
        config: the recipe.
        spec: model of the recipe.
        gpus: number of GPUs.
        needs: needs of the objective.
    """

    config: RecipeConfig
    spec: ModelSpec
    gpus: int
    needs: Needs

    @property
    def encoder_bytes(self) -> int:
        """Bytes of all text encoders."""
        return sum(self.spec.encoders.values()) * DTYPES[self.config.model.dtype].itemsize


def _rows(workload: _Workload, roles: dict[str, Tensors]) -> tuple[dict[str, Row], list[str]]:
    """Memory by role, without activations, and notes on what it leaves out."""
    config, gpus, spec = workload.config, workload.gpus, workload.spec
    shared, stage = config.model.roles == "shared_base", config.distributed.trained
    rows = {
        "student": memory.trained_row(roles["student"], stage, gpus, averaged=True, shared=shared),
        "fake_score": memory.trained_row(roles["fake_score"], stage, gpus, averaged=False, shared=shared),
        "teacher": memory.teacher_row(roles["teacher"], config.distributed.teacher, gpus),
    }
    notes = []
    if spec.autoencoder is not None:
        rows["autoencoder"] = Row(4 * sum(p.numel() for p in build_autoencoder(spec).parameters()))
        rows["text_encoder"] = Row(0 if config.model.keep_embeddings else workload.encoder_bytes)
        if config.model.decoder is not None:
            notes.append(f"the decoder {config.model.decoder}; decoding is counted as the pipeline's own autoencoder's")
    rows["rewards"] = Row()
    held_out = [reward.here for reward in config.evaluate.rewards]  # the main process has them from the start
    for reward in [*(config.rewards if workload.needs.reward else ()), *held_out]:
        size = 0 if reward.device == "cpu" else _reward_bytes(reward)
        rows["rewards"].weights += (size or 0) * max(1, reward.pool)  # each worker loads its own
        notes += [] if size is not None else [f"the weights of reward {reward.name}"]
    if workload.needs.reward:
        of_gradients = ", with the graphs that their gradients need" if workload.needs.reward_gradient else ""
        notes.append(f"the computation of the rewards{of_gradients}")
    return rows, notes


def _reward_bytes(reward: RewardConfig) -> int | None:
    if reward.name == "random":
        return 0
    path = reward.options.get("path")
    if reward.name != "clip" or not isinstance(path, str):
        return None
    count = clip_parameters(path, reward.options.get("revision"))
    return None if count is None else count * DTYPES[reward.options.get("dtype", "fp32")].itemsize


def _phases(workload: _Workload, rows: dict[str, Row]) -> dict[str, int]:
    """Most bytes by phase of a run, all roles together."""
    config = workload.config
    lasting = sum(row.lasting for row in rows.values())
    engines = config.distributed.trained != "none"
    both = sum(rows[role].gradients for role in ("student", "fake_score"))
    phases = {}
    for role in ("fake_score", "student"):
        gradients = both if engines else rows[role].gradients
        phases[f"{role} turn"] = lasting + gradients + rows[role].activations
    if workload.spec.encoders and config.model.keep_embeddings:
        before = sum(row.weights + row.average + row.buffers for row in rows.values()) - rows["batch"].buffers
        phases["embedding prompts"] = before + workload.encoder_bytes
    return phases


def _changes(config: RecipeConfig, gpus: int) -> Iterator[list[str]]:
    """Overrides from cheapest to dearest: recomputation, smaller micro-batches, sharding, offloading, adapters only."""
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
