"""The contract between a distillation host and its plugins: hook names, their arguments, what None means.

No logic and no torch at run time. A plugin is a module or object with functions marked `@amd_plugin.hookimpl`, named in the
entry-point group ``distill_host`` or given to `get_plugin_manager().register(...)`. Each may take any subset of the
arguments. From version 0.1.0 on hooks are added and their arguments extended, never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from amd_plugin.maths.adversarial import Adversarial
    from amd_plugin.maths.losses import LossOutput
    from amd_plugin.maths.signals import Signals

NAME = "distill_host"

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)

Window = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Everything an objective asks of a host beside samples, teacher and fake score. A default value asks for nothing.

    A host states the names of the fields that it can give, and refuses what is `missing` before anything is trained.

    Attributes:
        reward: advantages from rewards of decoded samples; without it a host decodes and scores nothing.
        group_size: fewest samples per prompt and batch that make sense.
        recommended_group_size: number of samples per prompt and batch below which a host warns.
        uncond: the teacher's unconditional prediction, `Signals.real_uncond`.
        noise_level: the noise level of x_t in the student's turn, `Signals.sigma`, as a fraction of the schedule.
        guidance_range: (low, high) noise levels of a draw and a teacher call of their own for the guidance term.
        match_range: (low, high) noise levels of the matching term, instead of the host's own.
        fake_score_weight: a weight per sample in the fake score's loss.
        fake_score_noise_level: the noise levels [B] of the fake score's turn, second argument of `sharpening_weights`.
        reward_gradient: a differentiable reward with its graph, `Signals.reward`.
        discriminator: loss weights of an adversarial branch, whose discriminator the host trains.
        replay: share in [0, 1) of the fake score's samples that come from a memory of failures.
    """

    reward: bool = False
    group_size: int = 1
    recommended_group_size: int = 1
    uncond: bool = False
    noise_level: bool = False
    guidance_range: Window | None = None
    match_range: Window | None = None
    fake_score_weight: bool = False
    fake_score_noise_level: bool = False
    reward_gradient: bool = False
    discriminator: Adversarial | None = None
    replay: float = 0.0

    def missing(self, offers: Collection[str]) -> dict[str, str]:
        """Needs whose field names are not in `offers`: name -> what a host would have to give, in words."""
        asked = [need.name for need in fields(self) if getattr(self, need.name) != need.default]
        return {name: IN_WORDS[name] for name in asked if name not in offers}


# What a host would have to give, by field of `Needs`.
IN_WORDS = {
    "reward": "rewards of decoded samples",
    "group_size": "several samples per prompt",
    "recommended_group_size": "several samples per prompt",
    "uncond": "the teacher's unconditional prediction",
    "noise_level": "the noise level of each sample in the student's turn",
    "guidance_range": "a noise level and a teacher call of its own for guidance",
    "match_range": "noise levels of its own for matching",
    "fake_score_weight": "a weight per sample in the fake score's loss",
    "fake_score_noise_level": "the noise levels of the fake score's turn",
    "reward_gradient": "a differentiable reward",
    "discriminator": "a discriminator on the fake score's features",
    "replay": "a memory of failures",
}
EVERYTHING: frozenset[str] = frozenset(IN_WORDS)


class Objective(Protocol):
    """What a host calls. `amd_plugin.DMDObjective` is the reference; B samples, then any dimensions.

    Attributes:
        guidance_scale: guidance scale w of the teacher, standard form.
        schedule_factor: factor in [0, 1] on everything that follows the reward; set by the host before every cycle, from
            `distill_strength_schedule`.
        reward_unit: reward difference that counts as significant (docs/rewards.md), 0 if unknown; set by the host once.
    """

    guidance_scale: float
    schedule_factor: float
    reward_unit: float

    @property
    def needs(self) -> Needs:
        """What it asks of a host."""
        ...

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set how hard the reward is followed, with their values: what to lower when a reward is hacked."""
        ...

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over a process's own samples; a host averages each over processes, in place, after a student turn."""
        ...

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """[B] from the rewards [B] and prompt ids [B] of the joined batch of all ranks; may update running statistics.

        Args:
            reward: higher is better; NaN for a failed one.
            groups: the same number for samples of one prompt.
            rung: the student's exit rung, from 0; 0 where the host has none.
        """
        ...

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """[B], mean 1, for the fake score's loss.

        Args:
            advantage: [B] of the joined batch.
            sigma: noise levels [B] of the fake score's turn, as fractions of the schedule; None if unknown.
        """
        ...

    def student_loss(self, signals: Signals) -> LossOutput:
        """Loss on `signals.x0`."""
        ...

    def fake_score_loss(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> LossOutput:
        """Denoising loss of the fake score on student samples."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        ...


class Reward(Protocol):
    """Scores decoded samples. It may also take columns of the batch by name, `labels` [B] for one."""

    def __call__(self, media: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor | Sequence[float | None]:
        """[B], higher is better, from media [B, C, H, W] or [B, C, T, H, W]; NaN or None where it could not be computed."""
        ...


class SigmaSampler(Protocol):
    """Moves the noise levels at which a turn compares or trains its networks."""

    def __call__(self, sigma: Tensor, *, role: str, advantage: Tensor | None, step: int, generator: Generator) -> Tensor:
        """New levels [B] from the levels `sigma` [B] drawn so far, as fractions in (0, 1) of the noise schedule.

        Args:
            sigma: the host's draw, or what an earlier sampler made of it, for the joined batch.
            role: ``student`` (matching), ``guide`` (guidance at its own level), ``fake_score``, or ``discriminator``.
            advantage: [B] of the joined batch, None where the objective uses no reward.
            step: student updates so far.
            generator: the only source of randomness to use; the same on every rank.
        """
        ...


@hookspec
def distill_objectives() -> Mapping[str, Callable[..., Objective]] | None:
    """Objectives by name; each is built from keyword options. None or {} adds nothing.

    The factory's annotated keyword parameters are the schema of a recipe's ``objective`` section: names, types and
    defaults are read off its signature. A name that is taken already disables the later plugin.
    """


@hookspec(firstresult=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective | None:
    """Builds objective `name`. Most plugins leave this alone; implement it to wrap or replace. None passes it on."""


@hookspec
def distill_rewards() -> Mapping[str, Callable[..., Reward]] | None:
    """Rewards by name; each factory is called with the recipe's options, and with ``task`` if it has such a parameter."""


@hookspec
def distill_families() -> Mapping[str, type[Any]] | None:
    """Pipelines that can be distilled: class name of the pipeline -> a class as `amd_plugin.models.family.Family` says."""


@hookspec
def distill_sigma_sampler(options: Mapping[str, Any]) -> SigmaSampler | None:
    """Called once before training with the resolved recipe. Samplers of several plugins run one after the other."""


@hookspec
def distill_strength_schedule(step: int, max_steps: int, metrics: Mapping[str, float]) -> float | None:
    """`Objective.schedule_factor` at `step`, in [0, 1]; `metrics` are those last logged. Several multiply; None is 1."""


@hookspec(firstresult=True)
def distill_prepare_frozen(
    role: str, module: nn.Module, accelerator: Any, options: Mapping[str, Any], read: Callable[[str], Tensor] | None
) -> nn.Module | None:
    """Places a frozen network (`role` is ``teacher``): device, sharding. None passes it on; the host's own keeps it whole.

    Args:
        role: which network.
        module: in eval mode; whole on the CPU, or with parameters on the meta device.
        accelerator: knows devices and processes.
        options: the resolved recipe.
        read: the value of a parameter on the meta device, by name; None where `module` is whole.
    """


@hookspec
def distill_on_step(step: int, metrics: Mapping[str, float]) -> None:
    """After student update `step` (from 1) that was logged, on the main process."""


@hookspec
def distill_state_dict() -> tuple[str, Mapping[str, Any]] | None:
    """(key, JSON-able state) a plugin wants in each checkpoint; called on the main process."""


@hookspec
def distill_load_state_dict(state: Mapping[str, Mapping[str, Any]]) -> None:
    """All plugins' states by key, on every process, when a run is resumed. Take your own."""


@hookspec
def distill_export(path: Path, options: Mapping[str, Any]) -> None:
    """After the student was written to `path`, on the main process: add files, never change those there."""
