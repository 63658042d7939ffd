"""The network calls of a training cycle, traced at true size: student, fake score, teacher and decoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from amd_plugin.config import RecipeConfig
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.models.embedded.networks import ClassConditional
from amd_plugin.models.family import Caller
from amd_plugin.models.roles import Role, StartNetworks, make_roles
from amd_plugin.models.step_conditioning import PARTS, conditions
from amd_plugin.plan.measured import measured
from amd_plugin.plan.model_spec import ModelSpec, build_autoencoder, fake_mode, fill_with_fakes
from amd_plugin.plan.trace import Trace, along, trace

PRECISION = {"no": torch.float32, "bf16": torch.bfloat16}
# Settings that say where a model or its first weights lie, or what it is asked for, and change no operation of a call.
NOT_MEASURED = {"path", "revision", "variant", "negative_prompt", "decoder", "student_from", "fake_score_from"}


class Tensors(NamedTuple):
    """The parameters of a role, each time as (number of elements, bytes of weights, number of tensors).

    Attributes:
        trained: parameters that are trained.
        frozen: parameters that are not.
        largest: number of elements of the largest tensor.
    """

    trained: tuple[int, int, int]
    frozen: tuple[int, int, int]
    largest: int


def sizes(spec: ModelSpec, config: RecipeConfig, *, outcomes: bool | Literal["if offered"] = False) -> dict[str, Tensors]:
    """Each role's own tensors, by role; with a shared base, the teacher's are the base.

    Args:
        spec: model of the recipe.
        config: the recipe.
        outcomes: `Needs.fake_score_outcome` of the objective.
    """
    made_of = _made_of(spec, config, outcomes=outcomes)

    def measure() -> dict[str, list[Any]]:
        return {name: list(_tensors(role)) for name, role in _roles(spec, config, None, outcomes=outcomes).items()}

    numbers = measured("sizes", made_of, measure, keep=_is_ours(spec))
    return {name: Tensors(tuple(trained), tuple(frozen), largest) for name, (trained, frozen, largest) in numbers.items()}


def traces(spec: ModelSpec, config: RecipeConfig, batch: int, uncond: bool) -> dict[str, Trace]:
    """``student`` and ``fake_score`` with gradient; ``rollout``, ``score`` and ``teacher`` without; ``decode``.

    Args:
        spec: model of the recipe.
        config: the recipe.
        batch: number of samples per call.
        uncond: whether the teacher is called for twice as many samples, with and without prompt.
    """
    made_of = {
        **_made_of(spec, config),
        "shapes": {"sample": spec.sample_shape, "condition": spec.family.condition_shapes(spec.tokens)},
        "autoencoder": _described(spec.autoencoder),
        "checkpointing": config.train.gradient_checkpointing,
        "batch": batch,
        "uncond": uncond,
    }

    def measure() -> dict[str, list[int]]:
        networks = partial(network_traces, spec, config, batch, uncond)
        found = along(networks, spec.depth) if spec.depth else networks(None)
        return {name: list(costs) for name, costs in {**found, "decode": _decode(spec, batch, grad=False)}.items()}

    return {name: Trace(*costs) for name, costs in measured("traces", made_of, measure, keep=_is_ours(spec)).items()}


def decode_with_gradient(spec: ModelSpec, batch: int) -> Trace:
    """The decoder's forward pass and its backward pass to `batch` samples, as a differentiable reward needs them."""
    made_of = {
        "family": type(spec.family).__name__, "autoencoder": _described(spec.autoencoder), "sample": spec.sample_shape,
        "batch": batch,
    }  # fmt: skip

    def measure() -> dict[str, list[int]]:
        return {"decode": list(_decode(spec, batch, grad=True))}

    return Trace(*measured("decode with gradient", made_of, measure, keep=_is_ours(spec))["decode"])


def _made_of(spec: ModelSpec, config: RecipeConfig, *, outcomes: bool | Literal["if offered"] = False) -> dict[str, Any]:
    """What the networks of all roles depend on."""
    tables = conditions(config.model, spec.family, outcomes=outcomes)
    return {
        "family": type(spec.family).__name__,
        "network": _described(spec.network),
        "model": config.model.model_dump(exclude=NOT_MEASURED),
        "conditions": tables and (tables.rungs, tables.outcomes),
        "engines": config.distributed.trained != "none",
        "precision": config.distributed.mixed_precision,
    }


def _described(part: tuple[Any, dict[str, Any]] | None) -> Any:
    """Class and config of a part, without what a config says of the file that it was read from."""
    return part and (part[0].__name__, {key: value for key, value in part[1].items() if not key.startswith("_")})


def _is_ours(spec: ModelSpec) -> bool:
    """Whether a model is called by this package's code alone."""
    return type(spec.family).__module__.startswith("amd_plugin.")


def network_traces(spec: ModelSpec, config: RecipeConfig, batch: int, uncond: bool, depth: int | None) -> dict[str, Trace]:
    """`traces` of the networks, with `depth` blocks where given."""
    precision = PRECISION[config.distributed.mixed_precision]
    autocast = partial(torch.autocast, "cpu", precision, enabled=precision != torch.float32)
    caller = Caller(spec.family, autocast)
    costs: dict[str, Trace] = {}
    roles = _roles(spec, config, depth)
    with fake_mode():
        for network in {id(role.network): role.network for role in roles.values()}.values():
            fill_with_fakes(network)
        alike = config.model.roles == "shared_base" or config.model.student == config.model.fake_score
        for name, alone in (("student", "rollout"), ("fake_score", "score")):
            if name == "fake_score" and alike:
                costs |= {"fake_score": costs["student"], "score": costs["rollout"]}
                continue
            if config.train.gradient_checkpointing:
                trained: Any = roles[name].network
                trained.enable_gradient_checkpointing()
            costs[alone] = _traced_call(caller, roles[name], spec, batch, grad=False)
            costs[name] = _traced_call(caller, roles[name], spec, batch, grad=True)
        costs["teacher"] = _traced_call(caller, roles["teacher"], spec, batch * (2 if uncond else 1), grad=False)
    return costs


def _traced_call(caller: Caller, role: Role, spec: ModelSpec, batch: int, *, grad: bool) -> Trace:
    x, timestep = torch.zeros((batch, *spec.sample_shape)), torch.zeros(batch)
    condition = spec.condition(batch)
    existing = [x, timestep, *condition.values(), *role.network.parameters(), *role.network.buffers()]
    if grad:
        for parameter in role.parameters():
            parameter.grad = torch.zeros_like(parameter)
            existing.append(parameter.grad)
    costs = trace(lambda: caller.call(role, x, timestep, condition), existing, grad=grad)
    for parameter in role.parameters():
        parameter.grad = None
    return costs


def _decode(spec: ModelSpec, batch: int, *, grad: bool) -> Trace:
    """The decoder's pass, with the media it returns; for videos every frame of the latents costs the same."""
    family = spec.family
    if spec.autoencoder is None or isinstance(family, ClassConditional):
        return Trace(0, 0, 0, 0, 0)
    vae = build_autoencoder(spec)
    channels, *rest = spec.sample_shape
    with fake_mode():
        fill_with_fakes(vae)
        existing = [*vae.parameters(), *vae.buffers()]

        def measure(frames: int) -> dict[str, Trace]:
            shape = (batch, channels, frames, *rest[1:]) if family.video else (batch, channels, *rest)
            latents = torch.zeros(shape, requires_grad=grad)
            return {"decode": trace(lambda: family.decode(vae, latents), [latents, *existing], grad=grad)}

        return (along(measure, rest[0]) if family.video else measure(1))["decode"]


def _roles(
    spec: ModelSpec, config: RecipeConfig, depth: int | None, *, outcomes: bool | Literal["if offered"] = False
) -> dict[str, Role]:
    conditioned = conditions(config.model, spec.family, outcomes=outcomes)
    with torch.device("meta"):
        base = spec.build(DTYPES[config.model.dtype], depth)
        roles = make_roles(config.model, StartNetworks(base, conditions=conditioned), config.train.seed)
    if config.distributed.trained != "none":
        # An engine keeps weights in the precision of its computations, and fp32 master weights with its optimizer.
        for role in (roles["student"], roles["fake_score"]):
            role.dtype, role.autocast = PRECISION[config.distributed.mixed_precision], False
            for parameter in role.network.parameters():
                parameter.data = parameter.data.to(role.dtype)
    return roles


def _tensors(role: Role) -> Tensors:
    own = {id(p) for p in role.parameters()}
    if role.frozen:  # a shared base without the adapters on it
        added = (".lora_", *(f"{part}." for part in PARTS))
        parameters = [p for name, p in role.network.named_parameters() if not any(part in name for part in added)]
    elif role.shared:
        parameters = role.parameters()
    else:
        parameters = list(role.network.parameters())
    trained, frozen = ([p for p in parameters if (id(p) in own) == wanted] for wanted in (True, False))
    return Tensors(_sums(trained), _sums(frozen), max((p.numel() for p in parameters), default=0))


def _sums(parameters: list[nn.Parameter]) -> tuple[int, int, int]:
    return sum(p.numel() for p in parameters), sum(_bytes(parameters)), len(parameters)


def _bytes(tensors: Any) -> Iterator[int]:
    for tensor in tensors:
        yield tensor.numel() * tensor.element_size()


def sample_bytes(spec: ModelSpec) -> int:
    """Bytes of one sample in fp32, as the networks take it."""
    return 4 * prod(spec.sample_shape)
