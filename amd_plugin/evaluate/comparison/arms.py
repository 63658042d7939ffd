"""The arms of a comparison: objectives with overrides, AMD's parts and controls, and every tuning of an arm."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError, did_you_mean
from amd_plugin.evaluate.comparison.result import names_a_folder
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.options import accepted
from amd_plugin.plugins import PluginManager

Overrides = tuple[str, ...]

# AMD's parts, the paper's form, and the controls an effect must beat. Below guidance 2 AMD's default is sharpening alone, so
# arms about adaptation switch it on.
VARIANTS: dict[str, Overrides] = {
    "amd_adaptation_only": ("objective.sharpening=0", "objective.strength=0.5"),
    "amd_sharpening_only": ("objective.strength=0",),
    "amd_both": ("objective.strength=0.5",),
    "amd_static": ("objective.static=true", "objective.strength=0.5"),
    "amd_paper": tuple(f"objective.{option}={json.dumps(value)}" for option, value in AMDOptions.paper().items()),
    "amd_random_reward": ("rewards=[{name: random}]",),
    "amd_inverted_reward": (),  # the recipe's own rewards, see `inverted`
}  # fmt: skip
ABLATION = tuple(VARIANTS)
MOST = 10_000  # arms, and seeds


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison, and one row of its table.

    Attributes:
        name: name of the row and of the arm's folder.
        objective: name of the objective that is trained.
        overrides: overrides of the recipe, ``a.b=value`` each.
        family: name of the arm that this one is a tuning of; its own name if it is a tuning of none.
    """

    name: str
    objective: str
    overrides: Overrides = ()
    family: str = ""

    @property
    def keys(self) -> list[str]:
        """Keys of the recipe that the arm sets itself."""
        return [override.partition("=")[0] for override in self.overrides]

    def sets(self, key: str) -> bool:
        """Whether an override sets `key`, a part of it, or a section that holds it."""
        return any(f"{key}.".startswith(f"{own}.") or f"{own}.".startswith(f"{key}.") for own in self.keys)


def arms(
    names: Sequence[str], plugins: PluginManager, rewards: Sequence[RewardConfig] = (), *, ablate: bool = False,
    tune: Sequence[str] = (), more: Sequence[str] = (),
) -> list[Arm]:  # fmt: skip
    """The arms to run; the first is the baseline.

    Args:
        names: objectives, or keys of `VARIANTS`.
        plugins: plugin manager that knows the objectives and their options.
        rewards: rewards of the recipe, whose signs the inverted control flips.
        ablate: add AMD's parts, the paper's form and the controls: random and inverted rewards, and the mean weights.
        tune: ``key=v1,v2`` each. Every arm runs again with every value, as arms ``dmd@key=v1``, and with several keys at every
            combination: an objective that was tuned must not be compared with one that was not. A value may be a list. An arm
            is not tuned over what it sets itself, nor over options that its objective does not have.
        more: further arms, ``name=objective key=value key=value`` each. A name ``dmd@...`` says that the arm is a tuning of
            the arm ``dmd``: tables count it as one where they look for the best DMD.

    Raises:
        InputError: for a malformed `tune` or `more`, a key that no arm can be tuned over, or two arms of one name.
    """
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise InputError("--objectives: must name at least one objective, got none")
    variants = VARIANTS | {"amd_inverted_reward": inverted(rewards)}
    chosen = [_named_arm(name, variants) for name in dict.fromkeys(wanted)] + [_own_arm(text) for text in more]
    chosen += [_named_arm(name, variants) for name in ABLATION if ablate and name not in wanted]
    for arm in chosen:
        _check_tuning(arm, chosen)
    grid = dict(map(_key_and_values, tune))
    if len(grid) < len(tune):
        raise InputError(f"--tune: name each key once, with all its values; got {', '.join(tune)}")
    chosen += _tuned(chosen, grid, plugins)
    every = [arm.name for arm in chosen]
    if wrong := next((name for name in every if not names_a_folder(name)), None):
        raise InputError(f"--arm, --tune: '{wrong}' would be the name of a folder; use letters, digits and . _ @ + -")
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two arms would be called '{twice}'; give each name, each value and each last part of a key once")
    return [replace(arm, family=arm.family or arm.name) for arm in chosen]


def inverted(rewards: Sequence[RewardConfig]) -> Overrides:
    """The overrides that flip the sign of every weight in `rewards`, so that the best samples score worst."""
    flipped = [reward.model_copy(update={"weight": -reward.weight}).model_dump(mode="json") for reward in rewards]
    return (f"rewards={json.dumps(flipped)}",)


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """``8`` means 0 to 7, ``3,5,9`` those, ``5,`` the seed 5 alone; raises InputError for anything else."""
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        numbers = [-1]
    if "," not in text and numbers[0] > MOST:
        raise InputError(f"{option}: must be {MOST:,} seeds at most, each of which is a run of every arm, got '{text[:30]}'")
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(
            f"{option}: must be a number of seeds, or different seeds separated by commas ('5,' for seed 5 alone), got '{text}'"
        )
    return seeds


def _named_arm(name: str, variants: Mapping[str, Overrides]) -> Arm:
    return Arm(name, "amd" if name in variants else name, variants.get(name, ()))


def _own_arm(text: str) -> Arm:
    name, equals, rest = text.partition("=")
    objective, *overrides = rest.split() or [""]
    if not name.strip() or not equals or not objective or any("=" not in part for part in overrides):
        raise InputError(f"--arm {text!r}: must read name=objective key.key=value key.key=value")
    return Arm(name, objective, tuple(overrides))


def _check_tuning(arm: Arm, arms: Sequence[Arm]) -> None:
    """Refuses an arm of a user's whose name says that it is a tuning of an arm of another objective."""
    tuned, at, _ = arm.name.partition("@")
    other = next((other for other in arms if at and other.name == tuned), arm)
    if other.objective != arm.objective:
        message = f"a name with @ is that of a tuning, and arm '{tuned}' is of objective {other.objective}"
        raise InputError(f"--arm '{arm.name}={arm.objective} ...': {message}. Give it a name without @")


def _key_and_values(text: str) -> tuple[str, list[str]]:
    """``key=v1,v2`` as (key, values), which may be lists."""
    key, _, listed = text.partition("=")
    values = re.split(r",(?![^\[]*\])", listed)
    if not key or not all(values):
        raise InputError(f"--tune {text}: must read key.key=value,value")
    return key, values


def _tuned(arms: Sequence[Arm], grid: Mapping[str, Sequence[str]], plugins: PluginManager) -> list[Arm]:
    """Every arm at every point of `grid`, key -> values, without the keys that it sets itself or does not have."""
    factories, tunings, used = plugins.objectives(), list[Arm](), set[str]()
    for arm in arms:
        options = accepted(factories[arm.objective]) if arm.objective in factories else None
        free = {key: values for key, values in grid.items() if not arm.sets(key) and _has(options, key)}
        used |= set(free)
        if (points := math.prod(map(len, free.values()))) > MOST:
            raise InputError(f"--tune: makes {points:,} arms of {arm.name}, one for each combination, of {MOST:,} at most")
        for point in itertools.product(*free.values()) if free else ():
            settings = dict(zip(free, point, strict=True))
            name = arm.name + "".join(f"@{key.rpartition('.')[2]}={_in_a_name(value)}" for key, value in settings.items())
            overrides = (f"{key}={value}" for key, value in settings.items())
            tunings.append(Arm(name, arm.objective, (*arm.overrides, *overrides), arm.name))
    if unused := set(grid) - used:
        objectives = (factories[arm.objective] for arm in arms if arm.objective in factories)
        known = {f"objective.{option}" for factory in objectives for option in accepted(factory) or ()}
        hint = did_you_mean(min(unused), known)
        raise InputError(f"--tune {min(unused)}: no arm has this option, or leaves it open.{hint}")
    return tunings


def _has(options: Container[str] | None, key: str) -> bool:
    """Whether a recipe's `key` has an effect on an objective with these options; None stands for an objective with any."""
    section, _, option = key.partition(".")
    return options is None or section != "objective" or option in options


def _in_a_name(value: str) -> str:
    """A value as part of an arm's name, which becomes a folder's."""
    return re.sub(r"[^-+.\w]+", "-", value.strip("[]"))
