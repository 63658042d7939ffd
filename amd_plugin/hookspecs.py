"""The contract between a distillation host and its plugins: names of hooks, their arguments, and the meaning of None.

No logic and no torch at run time. A plugin is a module or object with functions marked `@amd_plugin.hookimpl`, named in the
entry-point group ``distill_host`` or given to `get_plugin_manager().register(...)`. A hook function may take any subset of the
arguments. From version 0.1.0 on, releases add hooks and arguments, and never change or remove any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
IF_OFFERED: Literal["if offered"] = "if offered"


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Everything an objective needs from a host beside samples, teacher and fake score. A field at its default is no need.

    A host states the names of the fields that it offers, and refuses an objective with `missing` ones before it trains. A need
    that is `IF_OFFERED` is never missing: the objective does without where a host does not offer it.

    Attributes:
        reward: whether rewards of decoded samples are needed, as advantages; if not, a host decodes and scores nothing.
        group_size: smallest number of samples per prompt and batch that the objective can use.
        recommended_group_size: number of samples per prompt and batch below which a host warns.
        uncond: whether the teacher's unconditional prediction is needed, as `Signals.real_uncond`.
        noise_level: whether the noise level of x_t in the student's turn is needed, as `Signals.sigma`.
        guidance_range: (low, high) noise levels of the guidance term, for a draw and a teacher call of its own.
        match_range: (low, high) noise levels of the matching term, in place of the host's.
        fake_score_weight: whether the fake score's loss takes a weight per sample.
        fake_score_noise_level: whether `sharpening_weights` needs the noise levels [B] of the fake score's turn.
        fake_score_rung: whether `sharpening_weights` needs the exit rungs [B] of the samples, where these may differ; may be
            `IF_OFFERED`.
        fake_score_outcome: whether the fake score is conditioned on the outcome of each sample; may be `IF_OFFERED`. It is
            trained with `Objective.outcomes`. It predicts `Signals.fake` without one, and `fake_bad` and `fake_good` with each.
        reward_gradient: whether a differentiable reward with its graph is needed, as `Signals.reward`; may be `IF_OFFERED`.
        discriminator: loss weights of an adversarial branch, whose discriminator the host trains.
        replay: share in [0, 1) of the fake score's samples that come from a memory of failures.
        groups: whether the prompt of each sample is needed in the student's turn, as `Signals.groups`.
        student_steps: smallest number of denoising steps of a student that the objective can train.
        transition_density: whether the log-density of the student's own transitions is needed, as `Signals.log_density`.
        student_prediction: whether the student's prediction from its own re-noised samples is needed, as `Signals.student`.
        teacher_path: (steps taken, steps of the whole path) of the teacher from the student's own noise, the end of which is
            needed as `Signals.anchor`.
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
    fake_score_rung: bool | Literal["if offered"] = False
    fake_score_outcome: bool | Literal["if offered"] = False
    reward_gradient: bool | Literal["if offered"] = False
    discriminator: Adversarial | None = None
    replay: float = 0.0
    groups: bool = False
    student_steps: int = 1
    transition_density: bool = False
    student_prediction: bool = False
    teacher_path: tuple[int, int] | None = None

    @property
    def own_rollouts(self) -> bool:
        """Whether the student's turn has to know the noise and the steps of its rollout, so that no other turn's can serve."""
        return self.transition_density or self.teacher_path is not None

    def missing(self, offers: Collection[str]) -> dict[str, str]:
        """Names of needs that are not in `offers`, each with a description for people."""
        needed = [need.name for need in fields(self) if getattr(self, need.name) not in (need.default, IF_OFFERED)]
        return {name: IN_WORDS[name] for name in needed if name not in offers}


# Descriptions of the fields of `Needs` for people.
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
    "fake_score_rung": "the exit rungs of the fake score's samples",
    "fake_score_outcome": "a fake score that is conditioned on the outcome of each sample",
    "reward_gradient": "a differentiable reward",
    "discriminator": "a discriminator on the fake score's features",
    "replay": "a memory of failures",
    "groups": "the prompt of each sample in the student's turn",
    "student_steps": "a student of several steps",
    "transition_density": "the log-density of the student's own transitions",
    "student_prediction": "the student's prediction from its re-noised samples",
    "teacher_path": "the teacher's path from the student's noise",
}
EVERYTHING: frozenset[str] = frozenset(IN_WORDS)


class Objective(Protocol):
    """The interface of an objective. `amd_plugin.DMDObjective` is the reference; tensors are [B, ...] for B samples.

    Attributes:
        guidance_scale: guidance scale w of the teacher, in the standard form ``uncond + w (cond - uncond)``.
        schedule_factor: factor in [0, 1] on the weights and terms that follow the reward; set by the host before every
            cycle, from `distill_strength_schedule`.
        reward_unit: reward difference that counts as significant (docs/rewards.md), 0 if unknown; set by the host once.
    """

    guidance_scale: float
    schedule_factor: float
    reward_unit: float

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        ...

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set the influence of the reward, with their values; lower them if the reward is hacked."""
        ...

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over a process's own samples; a host averages each over processes, in place, after a student turn."""
        ...

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Advantages [B] of the batch of all ranks; may update running statistics.

        Args:
            reward: rewards [B], higher is better; NaN for a failed one.
            groups: prompt ids [B], the same number for samples of one prompt.
            rung: index of the student's exit rung, from 0; 0 for a host without rungs.
        """
        ...

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Weights [B] of mean 1 for the fake score's loss.

        An objective with `Needs.fake_score_rung` takes the exit rungs [B] int64 of the samples too, as ``rungs``.

        Args:
            advantage: advantages [B] of the batch of all ranks.
            sigma: noise levels [B] of the fake score's turn, as fractions of the schedule; None if unknown.
        """
        ...

    def outcomes(self, advantage: Tensor, draws: Tensor) -> Tensor:
        """Outcomes [B] int64 with which the fake score is trained; called only if `Needs.fake_score_outcome`.

        Args:
            advantage: advantages [B] of the batch of all ranks.
            draws: uniform random numbers [B] in [0, 1).

        Returns:
            ``NONE``, ``BAD`` or ``GOOD`` of `amd_plugin.maths.advantage_guidance` for each sample.
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
        """Restores what `state_dict` gave."""
        ...


class Reward(Protocol):
    """A reward of decoded samples. It may also take columns of the batch by name, e.g. `labels` [B]."""

    def __call__(self, media: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor | Sequence[float | None]:
        """Scores [B], higher is better, of media [B, C, H, W] or [B, C, T, H, W]; NaN or None for a failed score."""
        ...


class SigmaSampler(Protocol):
    """A change of the noise levels at which a turn compares or trains its networks."""

    def __call__(self, sigma: Tensor, *, role: str, advantage: Tensor | None, step: int, generator: Generator) -> Tensor:
        """New noise levels [B], as fractions in [0, 1] of the schedule.

        Args:
            sigma: noise levels [B] of the batch of all ranks: the host's draw, or the result of an earlier sampler.
            role: ``student`` (matching), ``guide`` (guidance at its own level), ``fake_score``, or ``discriminator``.
            advantage: advantages [B] of the batch of all ranks; None for role ``discriminator`` and without rewards.
            step: number of student updates so far.
            generator: the only source of randomness to use; the same on every rank.
        """
        ...


@hookspec
def distill_objectives() -> Mapping[str, Callable[..., Objective]] | None:
    """Factories of objectives by name, called with keyword options. None or {} adds nothing.

    The signature of a factory is the schema of a recipe's ``objective`` section: names, types and defaults of its keyword
    parameters. A plugin that claims the name of an earlier plugin is disabled.
    """


@hookspec(firstresult=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective | None:
    """An objective built in place of ``factory(**options)``, to wrap or replace it; None leaves it to the next plugin."""


@hookspec
def distill_rewards() -> Mapping[str, Callable[..., Reward]] | None:
    """Factories of rewards by name, called with the recipe's options, and with ``task`` and ``plugins`` if they take these."""


@hookspec
def distill_families() -> Mapping[str, type[Any]] | None:
    """Families of pipelines, classes that follow `amd_plugin.models.family.Family`, by class name of the pipeline."""


@hookspec
def distill_sigma_sampler(options: Mapping[str, Any]) -> SigmaSampler | None:
    """A sampler of noise levels, or None; called once before training with the resolved recipe. Several run in sequence."""


@hookspec
def distill_strength_schedule(step: int, max_steps: int, metrics: Mapping[str, float]) -> float | None:
    """`Objective.schedule_factor` at `step`, in [0, 1], from the last logged `metrics`. Several multiply; None is 1."""


@hookspec
def distill_advantage_schedule(sigma: Tensor, step: int, max_steps: int, metrics: Mapping[str, float]) -> Tensor | None:
    """Factors [B], at least 0, on the scale of advantage guidance in a student turn. Several multiply; None is 1.

    Args:
        sigma: noise levels [B] of the turn, as fractions in [0, 1] of the schedule, the same on every rank.
        step: number of student updates so far.
        max_steps: number of student updates of the run.
        metrics: last logged metrics.
    """


@hookspec(firstresult=True)
def distill_prepare_frozen(
    role: str, module: nn.Module, accelerator: Any, options: Mapping[str, Any], read: Callable[[str], Tensor] | None
) -> nn.Module | None:
    """A frozen network on its devices, whole or sharded; None leaves it to the next plugin, at last to the host.

    Args:
        role: role of the network, ``teacher``.
        module: network in eval mode, whole on the CPU or with parameters on the meta device.
        accelerator: accelerate's `Accelerator` of the run.
        options: resolved recipe.
        read: function of a parameter's name to its value, for parameters on the meta device; None for a whole `module`.
    """


@hookspec
def distill_on_step(step: int, metrics: Mapping[str, float]) -> None:
    """Called on the main process after each logged student update; `step` counts from 1."""


@hookspec
def distill_state_dict() -> tuple[str, Mapping[str, Any]] | None:
    """Key and JSON-able state of a plugin for each checkpoint; called on the main process."""


@hookspec
def distill_load_state_dict(state: Mapping[str, Mapping[str, Any]]) -> None:
    """Called on every process when a run is resumed, with the states of all plugins by key."""


@hookspec
def distill_export(path: Path, options: Mapping[str, Any]) -> None:
    """Called on the main process after the student was written to `path`. Add files, and leave existing ones unchanged."""
