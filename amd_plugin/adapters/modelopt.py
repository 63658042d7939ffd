"""AMD in NVIDIA ModelOpt (`modelopt.torch.fastgen`): a `DMDPipeline` whose user changes one constructor.

ModelOpt's own code draws noise, rolls out, calls the networks and computes the adversarial term. The adapter records the
predictions of `_predict_x0` and replaces the matching loss. Without a reward, or with strength and sharpening 0, ModelOpt's own
code runs unchanged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.adapters.failures import Failures, Shown
from amd_plugin.adapters.harvest import Rollouts, checked_rollouts
from amd_plugin.adapters.host_objective import adaptive_objective, require_fit
from amd_plugin.adapters.modelopt_host import HOST, DMDPipeline, dmd
from amd_plugin.adapters.modelopt_rollout import Given, HarvestedCycle, cannot_harvest, harvest
from amd_plugin.adapters.modelopt_turn import Turn
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.offers import MODELOPT
from amd_plugin.adapters.own_options import check_count, check_switch
from amd_plugin.adapters.run_state import restore, state_of
from amd_plugin.adapters.validation import Validation
from amd_plugin.adapters.weighted_loss import weighted_loss
from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

log = logging.getLogger(__name__)

TeacherSharding = Literal["none", "zero3", "zero3_offload"]


# To a type checker a mix-in over the host's pipeline; at run time `adaptive` puts it over any of the host's classes.
_Base = DMDPipeline if TYPE_CHECKING else object


class Adaptive(_Base):  # type: ignore[misc, valid-type]
    """A mix-in that adds AMD to a pipeline of the host.

    Args:
        student, teacher, fake_score, config, discriminator: arguments of the host's pipeline; the teacher may be a DeepSpeed
            engine.
        strength, sharpening: options of `amd_plugin.AMDObjective`.
        reward: function of (media, prompts), or a mapping with ``name`` and options, which is computed where the student is by
            now unless it names a ``device``; None leaves every advantage at 0.
        decode: function of latents to media [B, C, (T,) H, W] in [0, 1]; None scores the latents.
        amd: further options of `AMDObjective`, e.g. ``{"side": "both"}``.
        objective: objective to use in place of AMD, made by `get_plugin_manager().make_objective(...)` with the guidance scale
            of `config`. Its loss replaces the host's even without a reward; `strength`, `sharpening` and `amd` are ignored.
        accelerator: accelerator for hook ``distill_prepare_frozen``, which then places the teacher; None skips the hook.
        sharding: sharding of the teacher by that hook: ``none``, ``zero3`` or ``zero3_offload``.
        plugins: manager of rewards, noise-level samplers, strength schedules and sharding; None: all installed plugins.
        max_steps: number of student updates of the whole run, for strength schedules; 0 if unknown.
        rollouts: ``fresh`` for a rollout in each turn, as in the host; ``harvest`` for one in each cycle, whose samples all its
            turns use. A cycle is some calls of `compute_fake_score_loss`, then the student's; the arguments of its first call
            replace those of the others.
        accumulation: number of calls per update, of a loop that accumulates gradients.
        seed: seed of the run, the same on every rank, for AMD's own draws; torch's generators stay the host's.
        rung_conditioning: whether the fake score is conditioned on the student's exit rung, with `backward_simulation`.
        held_out: rewards that judge samples in `validate` and are not trained on, named as in `reward`.
        host: further arguments of the host's pipeline.

    Attributes:
        objective: objective that computes the losses.
        metrics: metrics of the last student turn, 0-dim tensors.
        turns: number of turns so far, by role.
        validation: the alarm's history; None without `held_out`.
        conditions: tables of outcomes and rungs that advantage guidance and `rung_conditioning` added to the fake score. Build
            the fake score's optimizer after the pipeline, so that it trains them too.

    Raises:
        InputError: for an option out of range, or an objective with a need that the host does not offer.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module,
        config: Any,
        *,
        discriminator: nn.Module | None = None,
        strength: float | Literal["auto"] = "auto",
        sharpening: float = 1.0,
        reward: Callable[..., Any] | Mapping[str, Any] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        amd: Mapping[str, Any] | None = None,
        objective: Objective | None = None,
        accelerator: Any = None,
        sharding: TeacherSharding = "none",
        plugins: PluginManager | None = None,
        max_steps: int = 0,
        rollouts: Rollouts = "fresh",
        accumulation: int = 1,
        seed: int = 0,
        rung_conditioning: bool = False,
        held_out: Any = None,
        **host: Any,
    ):
        scale = 1.0 if config.guidance_scale is None else config.guidance_scale
        for name in {"strength", "sharpening"} & (amd or {}).keys():
            raise InputError(f"amd.{name}: is an argument of AMDPipeline. Pass {name}=... instead")
        options = {**(amd or {}), "strength": strength, "sharpening": sharpening}
        check_count(accumulation, "accumulation", 1)
        check_count(max_steps, "max_steps", 0)
        check_count(seed, "seed", 0)
        self._cycle = HarvestedCycle(accumulation) if checked_rollouts(rollouts, "rollouts", cannot_harvest(config)) else None
        self._in_place = objective is not None  # and then its loss counts with a reward or without
        if objective is None:
            objective = adaptive_objective(scale, options, MODELOPT)
        else:
            require_fit(objective, scale, MODELOPT)
        plugins = plugins or get_plugin_manager()
        if sharding not in get_args(TeacherSharding) or (sharding != "none" and accelerator is None):
            message = f"must be one of {', '.join(get_args(TeacherSharding))}, and needs an accelerator"
            raise InputError(f"sharding: {message}, got {sharding!r} and accelerator {accelerator!r}")
        if accelerator is not None:
            recipe = {"distributed": {"teacher": sharding}}
            place = plugins.hook.distill_prepare_frozen
            teacher = place(role="teacher", module=teacher, accelerator=accelerator, options=recipe, read=None)
        super().__init__(student, _module(teacher), fake_score, config, discriminator=discriminator, **host)
        self.objective, self.metrics, self.turns = objective, dict[str, Tensor](), {"student": 0, "fake_score": 0}
        device = _device_of(student)
        reward = make_reward(reward, plugins, device)
        self.bridge = HostBridge(objective, reward, decode, plugins=plugins, options=options, seed=seed)
        self.validation = None if held_out is None else Validation(self.bridge, held_out, plugins, device)
        check_switch(rung_conditioning, "rung_conditioning")
        if rung_conditioning and not config.backward_simulation:
            raise InputError("rung_conditioning: needs backward_simulation, without which a sample has no exit rung")
        # Without a reward there is no outcome.
        outcomes = objective.needs.fake_score_outcome if self.bridge.uses_reward else False
        rungs = config.student_sample_steps if rung_conditioning else 0
        self.conditions = FakeScoreConditions(rungs, outcomes, plugins)
        self.conditions.add_to(fake_score)
        self._failures = Failures.of(self.bridge)
        self._max_steps, self._accumulation = max_steps, accumulation
        self._turn: Turn | None = None

    def validate(self, samples: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """Metrics of samples of the user's validation, with the alarm for hacked rewards; every rank has to call it.

        Args:
            samples: this rank's samples [B, ...], as `decode` takes them; the same prompts and noise at every validation.
            prompts: their prompts [B].

        Raises:
            InputError: without the argument `held_out`.
        """
        if self.validation is None:
            raise InputError("validate: needs the argument held_out, a reward that is not trained on")
        self.validation.add(self.bridge.media(samples), prompts)
        return self.validation.finish(self.turns["student"])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state for the user's checkpoint, beside networks and optimizers."""
        if self._cycle is not None and self._cycle.is_pending:
            log.warning("a checkpoint within a cycle is without its harvested samples: a resumed run rolls out anew")
        return {**state_of(self.bridge, self.validation, self._failures), "turns": dict(self.turns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; raises InputError for the state of another class."""
        keys = set(state) - {"validations", "failures", "plugins"}
        if keys != {"objective", "turns"} or set(state["turns"]) != set(self.turns):
            raise InputError(f"state of AMDPipeline: must have the keys objective and turns, got {sorted(state)}")
        restore(state, self.bridge, self.validation, self._failures)
        self.turns = {role: int(count) for role, count in state["turns"].items()}
        if self._cycle is not None:
            self._cycle.clear()

    @contextmanager
    def _start_turn(self, role: str, given: Given) -> Iterator[Turn]:
        """A context in which predictions are recorded, and noise levels pass through the plugins' samplers."""
        self.bridge.start_turn(self.turns["student"] // self._accumulation, self._max_steps, self.metrics)
        given = given if self._cycle is None else self._cycle.start_turn(role, given)
        self._turn = Turn(role, given, [])
        try:
            yield self._turn
            self.turns[role] += 1
        finally:
            self._turn = None

    def _only_looks(self) -> bool:
        """Whether a loss trains nothing, as in a validation: then it is the host's, and leaves turns and statistics alone."""
        if torch.is_grad_enabled():
            return False
        self.conditions.choose(None)
        return True

    def _predict_x0(
        self, model: nn.Module, hidden_states: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        """The host's prediction, or the harvested sample that the student gave before; recorded during a turn."""
        turn = self._turn
        if turn is None:
            return super()._predict_x0(model, hidden_states, timestep, *args, **kwargs)  # type: ignore[no-any-return]
        if model is self.fake_score:
            turn.fake_call = ((hidden_states, timestep, *args), kwargs)
            self.conditions.choose(self._rung(turn))
        if turn.harvested is not None and model is self.student:
            x0, turn.harvested = turn.harvested, None
        else:
            x0 = super()._predict_x0(model, hidden_states, timestep, *args, **kwargs)
        turn.predictions.append((model, x0, timestep))
        return x0

    def _build_student_input(self, latents: Tensor, noise: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The host's rollout; with harvested rollouts, the input that was kept for the student's turn."""
        turn, cycle = self._turn, self._cycle
        if cycle is None or turn is None or (turn.role == "student" and cycle.current is None):
            return super()._build_student_input(latents, noise, *args, **kwargs)  # type: ignore[no-any-return]
        if cycle.current is None:
            cycle.add(harvest(self, dmd, turn.given, kwargs))
        assert cycle.current is not None  # noqa: S101
        level = float(self.config.sample_t_cfg.t_list[cycle.rung])
        t = torch.full((len(noise),), level, device=noise.device, dtype=torch.float32)
        if turn.role == "student":
            return cycle.current.x, t
        # The host calls the student next, and gets this sample whatever the input is.
        turn.harvested = cycle.current.samples[cycle.rung]
        return turn.harvested, t

    def sample_timesteps(self, n: int, **kwargs: Any) -> Tensor:
        """Noise levels [n] as fractions of the schedule: the host's draw, during a turn after the plugins' samplers."""
        t: Tensor = super().sample_timesteps(n, **kwargs)
        if self._turn is None or not self.bridge.moves_noise_levels:
            return t
        if self.bridge.uses_reward:
            self._score(self._turn)
        return self.bridge.move_noise_levels(t, self._turn.role, self.turns[self._turn.role])

    def _score(self, turn: Turn) -> Tensor:
        """Advantages [B] of the turn's student samples, which are scored once."""
        if turn.advantage is not None:
            return turn.advantage
        x0, _ = self._exit(turn)
        shared, rung = None if self._cycle is None else self._cycle.current, self._rung(turn)
        if shared is not None and (scored := shared.scores.get(int(rung))) is not None:
            turn.advantage, turn.scored_before = self.bridge.recall(scored, x0.device), True
            return turn.advantage
        groups = group_ids(turn.given.prompts or turn.given.condition, len(x0))
        turn.advantage = self.bridge.advantages(x0, groups, turn.given.prompts, rung=rung)
        if shared is not None:
            shared.scores[int(rung)] = self.bridge.scored()
        return turn.advantage

    def _exit(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """The turn's student samples [B, ...], and the timesteps [B] at which they were predicted."""
        return next((x0, t) for model, x0, t in reversed(turn.predictions) if model is self.student)

    def _rung(self, turn: Turn) -> int | Tensor:
        """The exit rung of the turn: with backward simulation all samples of all ranks leave at one, a tensor [B] there.

        Its number would wait for the rollout.
        """
        if self._cycle is not None and self._cycle.current is not None:
            return self._cycle.rung
        if not self.config.backward_simulation:
            return 0
        _, levels = self._exit(turn)
        rungs = torch.tensor(self.config.sample_t_cfg.t_list, dtype=levels.dtype).to(levels.device, non_blocking=True)
        return (rungs - levels[:, None]).abs().argmin(1)

    def compute_student_loss(
        self,
        latents: Tensor,
        noise: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        guidance_scale: float | None = None,
        prompts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The host's losses, with the objective's as ``vsd``; samples of equal prompts, or else conditions, are one group.

        Args:
            latents, noise, encoder_hidden_states, guidance_scale, kwargs: arguments of the host's method.
            prompts: prompts [B] for the reward; None passes empty ones.
        """
        if self._only_looks():
            return super().compute_student_loss(  # type: ignore[no-any-return]
                latents, noise, encoder_hidden_states, guidance_scale=guidance_scale, **kwargs
            )
        with self._start_turn("student", Given(latents, noise, encoder_hidden_states, prompts, kwargs)) as turn:
            latents, noise, encoder_hidden_states, _, shared = turn.given
            kwargs = {**shared, **{name: value for name, value in kwargs.items() if name.startswith("negative_")}}
            losses: dict[str, Tensor] = super().compute_student_loss(
                latents, noise, encoder_hidden_states, guidance_scale=guidance_scale, **kwargs
            )
            if not (self.bridge.replaces_student_loss or self._in_place):
                return losses
            scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
            signals = self._signals(turn.predictions, guided=scale is not None)
            fields = {"advantage": self._score(turn), **self.bridge.student_fields(signals.x0, turn.given.prompts)}
            args, given = turn.fake_call
            predict = super()._predict_x0
            fields |= self.conditions.contrast(self._rung(turn), lambda: predict(self.fake_score, *args, **given))
        self.objective.guidance_scale = 1.0 if scale is None else scale
        output = self.bridge.student_loss(signals._replace(**fields))
        self.metrics = output.metrics | self.bridge.metrics
        # Further losses of the host stay in its total; the gradient of its own matching loss cancels exactly.
        return {**losses, "vsd": output.loss, "total": losses["total"] - losses["vsd"] + output.loss}

    def _replayed(self, turn: Turn, x0: Tensor, inputs: dict[str, Any]) -> Shown:
        """Samples of the fake score's turn with their inputs, some of which are remembered failures."""
        if self._failures is None:
            return Shown(x0, inputs)
        turns, are_new = self.turns["fake_score"], not turn.scored_before
        return self._failures.exchange(x0, inputs, self._rung(turn), turns, are_new=are_new)

    def _signals(self, predictions: list[tuple[nn.Module, Tensor, Tensor]], guided: bool) -> Signals:
        """Signals from a turn's last predictions: of student, fake score, teacher, and the teacher without condition."""
        expected = [self.student, self.fake_score, self.teacher] + [self.teacher] * guided
        last = predictions[-len(expected) :]
        if len(last) != len(expected) or any(model is not role for (model, *_), role in zip(last, expected, strict=True)):
            names = [type(model).__name__ for model, *_ in predictions]
            raise RunError(f"{HOST.distribution}: compute_student_loss calls its networks in another order, {names}")
        x0, fake, cond, *uncond = (x0 for _, x0, _ in last)
        return Signals(x0, cond, uncond[0] if uncond else None, fake, sigma=last[1][2])

    def compute_fake_score_loss(
        self,
        latents: Tensor,
        noise: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *,
        prompts: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The host's loss with one sharpening weight per sample, larger for failures; arguments as `compute_student_loss`."""
        if self._only_looks():
            return super().compute_fake_score_loss(latents, noise, encoder_hidden_states, **kwargs)  # type: ignore[no-any-return]
        with self._start_turn("fake_score", Given(latents, noise, encoder_hidden_states, prompts, kwargs)) as turn:
            latents, noise, encoder_hidden_states, _, shared = turn.given
            kwargs = {**shared, "encoder_hidden_states": encoder_hidden_states}
            if not (self.bridge.weighs_fake_score or self.conditions.parameters() or self._failures is not None):
                return super().compute_fake_score_loss(latents, noise, **kwargs)  # type: ignore[no-any-return]
            x_s, t_s = self._build_student_input(latents, noise, **kwargs)
            with torch.no_grad():
                x0 = self._predict_x0(self.student, x_s, t_s, **kwargs)
                t = self.sample_timesteps(len(x0), device=latents.device, dtype=torch.float32)
                eps = torch.randn_like(latents)
            self._score(turn)
            outcome = self.bridge.outcomes(self.turns["fake_score"]) if self.conditions.takes_outcomes else NONE
            shown = self._replayed(turn, x0, kwargs)
            x_t = dmd.add_noise(shown.x0, eps, t)
            self.conditions.choose(self._rung(turn), shown.outcome(outcome))
            raw = self._call_model(self.fake_score, x_t, t, **shown.inputs)
        native, space = self.config.pred_type, self.config.fake_score_pred_type or self.config.pred_type
        prediction = self._convert_pred(raw, x_t, t, from_pred_type=native, to_pred_type=space)

        def loss_of(prediction: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
            loss: Tensor = dmd.dsm_loss(space, prediction, x0=x0, eps=eps, t=t, alpha_fn=dmd.rf_alpha, sigma_fn=dmd.rf_sigma)
            return loss

        weight = shown.weight(self.bridge.weights(t), self.conditions.takes_outcomes)
        loss = weighted_loss(loss_of, weight, prediction, shown.x0, eps, t)
        return {"fake_score": loss, "total": loss}


def adaptive(pipeline_cls: type) -> type:
    """A subclass of any of the host's pipelines, e.g. `QwenImageDMDPipeline`, with AMD; its base is in attribute ``host``."""
    return type(f"AMD{pipeline_cls.__name__}", (Adaptive, pipeline_cls), {"host": pipeline_cls, "__doc__": Adaptive.__doc__})


class AMDPipeline(Adaptive, DMDPipeline):  # type: ignore[misc]
    """`DMDPipeline` with AMD; see `Adaptive` for its arguments."""

    host = DMDPipeline


def _device_of(network: nn.Module) -> torch.device | None:
    """The device of a network's weights; None for one that has none yet."""
    device = next((parameter.device for parameter in network.parameters()), None)
    return None if device is None or device.type == "meta" else device


def _module(teacher: nn.Module) -> nn.Module:
    """The network itself, for a DeepSpeed engine the one inside, as `eval()` of an engine returns None.

    The hooks of ZeRO-3 are registered on the network's own modules, so they still run.
    """
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and isinstance(teacher, deepspeed.DeepSpeedEngine):
        network: nn.Module = teacher.module
        return network
    return teacher
