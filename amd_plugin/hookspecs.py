"""The contract between a distillation host and its plugins: hook names, their arguments, what None means.

No logic and no torch at run time. A plugin is a module or object with functions marked `@amd_plugin.hookimpl`, named in the
entry-point group ``distill_host`` or given to `get_plugin_manager().register(...)`. Each may take any subset of the
arguments. Hooks are added and their arguments extended, never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from amd_plugin.maths.losses import LossOutput
    from amd_plugin.maths.signals import Signals

NAME = "distill_host"

hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


class Objective(Protocol):
    """What a host calls. `amd_plugin.DMDObjective` is the reference; B samples, then any dimensions.

    Attributes:
        guidance_scale: w of the teacher, standard form.
        needs_reward: False: the host decodes and scores nothing, and gives no advantages.
        needs_uncond: False: the host may leave `Signals.real_uncond` out.
        min_group_size: fewest samples per prompt that make sense.
        guidance_sigma, match_sigma: (low, high) noise levels of the two terms; None: one draw for both, left to the host.
        strength_scale: factor on the objective's own strength, written by the host (see `distill_strength_schedule`).

    An objective may also have any of these attributes; a host that cannot do what one asks for must say so:
        adversarial: an `amd_plugin.maths.adversarial.Adversarial`: the host trains a discriminator and adds its loss too.
        reward_options: names of options that say how hard it follows the reward: what to lower when that is hacked.
        recommended_group_size: fewer samples per prompt deserve a warning.
        per_rung: true: `advantage` takes the student's exit rung as a third argument, ``rung``.
        sharpening_sigma: not None: `sharpening_weights` takes the noise levels [B] of the fake score's turn as a second
            argument, ``sigma``.
        reward_unit: written by the host: a clear difference of rewards (docs/rewards.md), 0 where nobody knows.
        reward_gradient: above 0: `Signals.reward` must carry a differentiable reward.
        shared_sums: running sums over a process's own samples; a host of several averages each of these tensors over them,
            in place, after every student turn.
        memory_share, memory_size: above 0: a share of what the fake score learns from is to come from a memory of failures.
    """

    guidance_scale: float
    needs_reward: bool
    min_group_size: int
    guidance_sigma: tuple[float, float] | None
    match_sigma: tuple[float, float] | None
    strength_scale: float

    @property
    def needs_uncond(self) -> bool:
        """See above."""
        ...

    def advantage(self, reward: Tensor, groups: Tensor) -> Tensor:
        """[B] from the rewards [B] and prompt ids [B] of the joined batch of all ranks; may update running statistics."""
        ...

    def sharpening_weights(self, advantage: Tensor) -> Tensor:
        """[B], mean 1, for the fake score's loss, from the advantages of the joined batch."""
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
            advantage: [B] of the joined batch, None where the objective listens to no reward.
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
    """Rewards by name; each factory is called with the recipe's options, and with ``task`` and ``plugins`` if it takes them."""


@hookspec
def distill_families() -> Mapping[str, type[Any]] | None:
    """Pipelines that can be distilled: class name of the pipeline -> a class as `amd_plugin.models.family.Family` says."""


@hookspec
def distill_sigma_sampler(options: Mapping[str, Any]) -> SigmaSampler | None:
    """Called once before training with the resolved recipe. Samplers of several plugins run one after the other."""


@hookspec
def distill_strength_schedule(step: int, max_steps: int, metrics: Mapping[str, float]) -> float | None:
    """Factor in [0, 1] on the objective's strength at `step`; `metrics` are those last logged. Several multiply; None is 1."""


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
