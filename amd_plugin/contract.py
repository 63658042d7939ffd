"""Checks of the hook contract: results of hooks, attributes of objectives, and what an objective needs from a host."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from amd_plugin.errors import AmdPluginError, InputError, RunError, in_words
from amd_plugin.hookspecs import Needs, Objective, SigmaSampler
from amd_plugin.process_settings import as_they_were

if TYPE_CHECKING:
    from torch import Generator, Tensor

_OBJECTIVE = (
    "guidance_scale", "schedule_factor", "reward_unit", "needs", "reward_levers", "shared_sums",
    "advantage", "sharpening_weights", "student_loss", "fake_score_loss", "state_dict", "load_state_dict",
)  # fmt: skip
# Attributes of the contract before 0.1.0 -> their replacements.
BEFORE_0_1 = {
    "needs_reward": "needs.reward", "needs_uncond": "needs.uncond", "min_group_size": "needs.group_size",
    "recommended_group_size": "needs.recommended_group_size", "per_rung": "the argument rung of advantage",
    "strength_scale": "schedule_factor", "memory_share": "needs.replay", "reward_options": "reward_levers",
}  # fmt: skip
# Attributes that were needs by themselves before 0.1.0 -> fields of `Needs`.
_NEEDS_BEFORE_0_1 = {
    "guidance_sigma": "guidance_range", "match_sigma": "match_range", "adversarial": "discriminator",
    "sharpening_sigma": "fake_score_noise_level", "reward_gradient": "reward_gradient",
}  # fmt: skip


class Renamed:
    """An attribute of the contract before 0.1.0; reading it raises an AttributeError that gives its replacement."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Keeps the attribute's name."""
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        """Raises AttributeError, so that the attribute counts as absent."""
        raise AttributeError(f"{owner.__name__}.{self._name} is now {BEFORE_0_1[self._name]}")


def objective_problem(objective: Any) -> str:
    """Why `objective` is not an `Objective`, as the end of a sentence about it; empty if it is one."""
    classes = [kind for kind in type(objective).__mro__ if not kind.__module__.startswith(("amd_plugin.", "builtins"))]
    names = {*getattr(objective, "__dict__", {}), *(name for kind in classes for name in vars(kind))}
    if old := [f"{name}, which is now {new}" for name, new in BEFORE_0_1.items() if name in names]:
        return f"with {', '.join(old)}"
    absent = [part for part in _OBJECTIVE if not hasattr(objective, part)]
    if absent:
        return f"without {', '.join(absent)}"
    if not isinstance(objective.needs, Needs):
        return f"whose needs is a {type(objective.needs).__name__} and not an amd_plugin.hookspecs.Needs"
    for name, need in _NEEDS_BEFORE_0_1.items():
        if name in names and getattr(objective, name) and need not in objective.needs.missing(()):
            return f"with {name}, instead of which a host reads needs.{need}"
    if objective.needs.fake_score_outcome and not hasattr(objective, "outcomes"):
        return "with needs.fake_score_outcome and without outcomes"
    rungs = ("rungs",) if objective.needs.fake_score_rung else ()
    for method, arguments, by_name in (
        ("advantage", ("reward", "groups", "rung"), ()), ("sharpening_weights", ("advantage", "sigma"), rungs),
    ):  # fmt: skip
        try:
            inspect.signature(getattr(objective, method)).bind(*arguments, **dict.fromkeys(by_name))
        except (TypeError, ValueError):
            return f"whose {method} does not take ({', '.join((*arguments, *by_name))})"
    return ""


def _factories(result: Any) -> Any:
    if not isinstance(result, Mapping):
        raise TypeError(f"must return a mapping of names to factories, got {type(result).__name__}")
    for name, factory in result.items():
        if not isinstance(name, str) or not callable(factory):
            raise TypeError(f"must map names to callables, got {name!r}: {factory!r}")
        inspect.signature(factory)
    return result


def _factor(result: Any) -> Any:
    if isinstance(result, bool) or not isinstance(result, int | float) or not 0 <= result <= 1:
        raise ValueError(f"must return a factor in [0, 1] or None, got {result!r}")
    return result


def _factors(result: Any) -> Any:
    import torch

    floating = isinstance(result, torch.Tensor) and result.is_floating_point() and result.ndim == 1
    if not floating or not ((result >= 0) & (result < math.inf)).all():
        raise ValueError(f"must return finite factors [B] of at least 0 or None, got {result!r}")
    return result.detach()


def _sampler(result: Any) -> Any:
    if not callable(result):
        raise TypeError(f"must return a callable or None, got {result!r}")
    return result


def _network(result: Any) -> Any:
    import torch

    if not isinstance(result, torch.nn.Module):
        raise TypeError(f"must return a torch module or None, got {type(result).__name__}")
    return result


def _state(result: Any) -> Any:
    key, state = result
    if not isinstance(key, str):
        raise TypeError(f"must return a key that is text, got {key!r}")
    return key, json.loads(json.dumps(dict(state)))


# Hook -> what a plugin's result is to the host; raises where it is nothing of use. None needs no check: any hook may return it.
# An objective is checked where it is built, as the user asked for it by name.
ACCEPT: dict[str, Callable[[Any], Any]] = {
    "distill_objectives": _factories,
    "distill_rewards": _factories,
    "distill_families": _factories,
    "distill_make_objective": lambda result: result,
    "distill_strength_schedule": _factor,
    "distill_advantage_schedule": _factors,
    "distill_sigma_sampler": _sampler,
    "distill_prepare_frozen": _network,
    "distill_state_dict": _state,
    "distill_on_step": lambda result: None,
    "distill_load_state_dict": lambda result: None,
    "distill_export": lambda result: None,
}


def own_copies(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a hook, with copies of tensors and mappings: a plugin that changes its own changes nobody else's."""
    return {name: _own(value) for name, value in given.items()}


def _own(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _own(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_own(inner) for inner in value]
    # By its methods, as this module does without torch.
    is_tensor = hasattr(value, "detach") and hasattr(value, "clone") and not isinstance(value, type)
    return value.detach().clone() if is_tensor else value


def moved_levels(
    sigma: Tensor,
    samplers: Iterable[SigmaSampler],
    draws: Callable[[int], Generator],
    *,
    advantage: Tensor | None,
    **given: Any,
) -> Tensor:
    """The noise levels [B] that the plugins' samplers make of `sigma` [B], one after the other.

    Args:
        sigma: the host's draw, fractions of the schedule.
        samplers: the samplers in the order in which they run.
        draws: function of a sampler's number to its random generator.
        advantage: advantages [B]; None where there are none.
        given: further arguments of a sampler.

    Raises:
        RunError: for a sampler that fails, or returns another shape, type or device, or levels outside [0, 1].
    """
    for index, sampler in enumerate(samplers):
        name = f"{sampler.__module__}.{getattr(sampler, '__qualname__', type(sampler).__qualname__)}"
        try:
            # Copies: what a sampler does to its own changes nothing but what it returns.
            with as_they_were(f"sigma sampler {name}"):
                moved = sampler(_own(sigma), advantage=_own(advantage), generator=draws(index), **given)
        except AmdPluginError:
            raise
        except Exception as error:
            raise RunError(f"sigma sampler {name}: {in_words(error)}") from error
        if wrong := _levels_problem(moved, sigma):
            wanted = f"a new tensor of {len(sigma)} levels in [0, 1], {sigma.dtype} on {sigma.device}"
            raise RunError(f"sigma sampler {name}: must return {wanted}, got {wrong}")
        sigma = moved.detach()
    return sigma


def _levels_problem(moved: Any, sigma: Tensor) -> str:
    """What a sampler made of the levels `sigma` [B], in words; empty if it is levels in their place."""
    import torch

    if not isinstance(moved, torch.Tensor):
        return type(moved).__name__
    if moved.shape != sigma.shape or moved.dtype != sigma.dtype or moved.device != sigma.device:
        return f"a tensor of shape {tuple(moved.shape)}, {moved.dtype}, on {moved.device}"
    inside = bool(((moved >= 0) & (moved <= 1)).all())
    return "" if inside else f"levels from {moved.min().item():g} to {moved.max().item():g}"


def refuse_what_is_missing(objective: Objective, offers: Collection[str]) -> None:
    """Raises InputError if `objective` needs what a host does not offer.

    Args:
        objective: objective whose needs are compared.
        offers: names of the fields of `amd_plugin.hookspecs.Needs` that the host can give.
    """
    for name, meaning in objective.needs.missing(offers).items():
        got = getattr(objective.needs, name)
        raise InputError(f"objective.needs.{name}: this host does not offer {meaning}, got {got!r}. Choose other options")


def gradient_option(objective: Objective) -> str:
    """Name of the option by which an objective follows a reward's gradient, for messages."""
    levers = objective.reward_levers
    return "advantage_gradient" if levers.get("advantage_gradient") and not levers.get("reward_gradient") else "reward_gradient"


def refuse_what_cannot_be_copied(objective: Objective) -> None:
    """Raises InputError if `objective` cannot be copied and put back, as a host does around an update that may be left out."""
    kind = type(objective).__name__
    try:
        vars(copy.deepcopy(objective))
    except Exception as error:
        message = f"must be one that copy.deepcopy copies, before each student turn, got a {kind}: {in_words(error)}"
        advice = "Keep locks, files and the like outside of it, or give it a __deepcopy__, and a __dict__ for its state"
        raise InputError(f"objective: {message}. {advice}") from error
