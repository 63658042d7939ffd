"""The calls that a training cycle is made of, traced at true size: student, fake score, teacher and decoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.config import RecipeConfig
from amd_plugin.models.family import Caller
from amd_plugin.models.pretrained import DTYPES
from amd_plugin.models.roles import Role, StartNetworks, make_roles
from amd_plugin.models.step_conditioning import PART, time_embeddings
from amd_plugin.plan.outline import Outline, build_autoencoder, faked, faking
from amd_plugin.plan.trace import Trace, along, trace

PRECISION = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_traced: dict[str, Any] = {}


@dataclass(frozen=True)
class Tensors:
    """Parameters of a role, by what becomes of them: (elements, bytes of weights, how many tensors).

    Attributes:
        trained, frozen: as said.
        largest: elements of the largest one.
    """

    trained: tuple[int, int, int]
    frozen: tuple[int, int, int]
    largest: int


def sizes(outline: Outline, config: RecipeConfig) -> dict[str, Tensors]:
    """Each role's own tensors; with a shared base, the teacher's are the base."""
    return {name: _tensors(role) for name, role in _roles(outline, config, None).items()}


def traces(outline: Outline, config: RecipeConfig, batch: int, uncond: bool) -> dict[str, Trace]:
    """``student`` and ``fake_score`` with gradient; ``rollout``, ``score`` and ``teacher`` without; ``decode``.

    Args:
        batch: samples at a time.
        uncond: the teacher is called for twice as many, with and without prompt.
    """
    precise = (config.model.model_dump(), config.train.gradient_checkpointing, config.distributed.mixed_precision)
    key = json.dumps([outline.network[1], *precise, config.distributed.trained != "none", batch, uncond], default=str)
    if key not in _traced:
        measure = partial(_networks, outline, config, batch, uncond)
        found = along(measure, outline.depth) if outline.depth else measure(None)
        _traced[key] = {**found, **_decode(outline, batch)}
    return dict(_traced[key])


def _networks(outline: Outline, config: RecipeConfig, batch: int, uncond: bool, depth: int | None) -> dict[str, Trace]:
    precision = PRECISION[config.distributed.mixed_precision]
    autocast = partial(torch.autocast, "cpu", precision, enabled=precision != torch.float32)
    caller = Caller(outline.family, autocast)
    found, roles = {}, _roles(outline, config, depth)
    with faking():
        for network in {id(role.network): role.network for role in roles.values()}.values():
            faked(network)
        alike = config.model.roles == "shared_base" or config.model.student == config.model.fake_score
        for name, alone in (("student", "rollout"), ("fake_score", "score")):
            if name == "fake_score" and alike:
                found |= {"fake_score": found["student"], "score": found["rollout"]}
                continue
            if config.train.gradient_checkpointing:
                roles[name].network.enable_gradient_checkpointing()
            found[alone] = _traced_call(caller, roles[name], outline, batch, grad=False)
            found[name] = _traced_call(caller, roles[name], outline, batch, grad=True)
        found["teacher"] = _traced_call(caller, roles["teacher"], outline, batch * (2 if uncond else 1), grad=False)
    return found


def _traced_call(caller: Caller, role: Role, outline: Outline, batch: int, *, grad: bool) -> Trace:
    x, timestep = torch.zeros((batch, *outline.sample_shape)), torch.zeros(batch)
    condition = outline.condition(batch)
    known = [x, timestep, *condition.values(), *role.network.parameters(), *role.network.buffers()]
    if grad:
        for parameter in role.parameters():
            parameter.grad = torch.zeros_like(parameter)
            known.append(parameter.grad)
    found = trace(lambda: caller.call(role, x, timestep, condition), known, grad=grad)
    for parameter in role.parameters():
        parameter.grad = None
    return found


def _decode(outline: Outline, batch: int) -> dict[str, Trace]:
    """The decoder's forward pass, with the media it returns; of a video it is the same for every frame of the latents."""
    if outline.autoencoder is None:
        return {"decode": Trace(0, 0, 0, 0, 0)}
    vae = build_autoencoder(outline)
    channels, *rest = outline.sample_shape
    with faking():
        faked(vae)
        known = [*vae.parameters(), *vae.buffers()]

        def measure(frames: int) -> dict[str, Trace]:
            latents = torch.zeros((batch, channels, frames, *rest[1:]) if outline.family.video else (batch, channels, *rest))
            return {"decode": trace(lambda: outline.family.decode(vae, latents), [latents, *known], grad=False)}

        return along(measure, rest[0]) if outline.family.video else measure(1)


def _roles(outline: Outline, config: RecipeConfig, depth: int | None) -> dict[str, Role]:
    told = time_embeddings(config.model, outline.family)
    with torch.device("meta"):
        base = outline.build(DTYPES[config.model.dtype], depth)
        roles = make_roles(config.model, StartNetworks(base, time_embeddings=told), config.train.seed)
    if config.distributed.trained != "none":
        # An engine keeps weights in the precision it computes in, and masters of them with its optimizer.
        for role in (roles["student"], roles["fake_score"]):
            role.dtype, role.autocast = PRECISION[config.distributed.mixed_precision], False
            for parameter in role.network.parameters():
                parameter.data = parameter.data.to(role.dtype)
    return roles


def _tensors(role: Role) -> Tensors:
    mine = {id(p) for p in role.parameters()}
    if role.frozen:  # what is left of a shared base without the adapters on it
        added = (".lora_", f"{PART}.")
        parameters = [p for name, p in role.network.named_parameters() if not any(part in name for part in added)]
    elif role.shared:
        parameters = role.parameters()
    else:
        parameters = list(role.network.parameters())
    trained, frozen = ([p for p in parameters if (id(p) in mine) == kept] for kept in (True, False))
    return Tensors(_sums(trained), _sums(frozen), max((p.numel() for p in parameters), default=0))


def _sums(parameters: list[nn.Parameter]) -> tuple[int, int, int]:
    return sum(p.numel() for p in parameters), sum(_bytes(parameters)), len(parameters)


def _bytes(tensors: Any) -> Iterator[int]:
    for tensor in tensors:
        yield tensor.numel() * tensor.element_size()


def sample_bytes(outline: Outline) -> int:
    """Of one sample in fp32, as the networks see it."""
    return 4 * Tensor.numel(torch.empty(outline.sample_shape, device="meta"))
