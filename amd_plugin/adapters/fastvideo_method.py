"""AMD in the turns of FastVideo's methods: predictions of its own code are recorded, and two of its losses replaced.

Without a reward, or with strength and sharpening 0, FastVideo's own code runs unchanged.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.adapters.failures import Failures, Shown
from amd_plugin.adapters.fastvideo_data import repeat_rows
from amd_plugin.adapters.fastvideo_host import HOST, DMD2Method, ModelBase, SelfForcingMethod
from amd_plugin.adapters.fastvideo_rollout import call_at, harvest, one_teacher_call, short_rollout
from amd_plugin.adapters.harvest import Harvest, checked_rollouts
from amd_plugin.adapters.host_metrics import Tracked
from amd_plugin.adapters.host_objective import adaptive_objective
from amd_plugin.adapters.method_wrapping import wrapped
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.offers import FASTVIDEO
from amd_plugin.adapters.own_options import check_switch, split_options
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.validation import Validation
from amd_plugin.errors import InputError, RunError
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

# To a type checker a mix-in over FastVideo's method.
_Base = DMD2Method if TYPE_CHECKING else object


class Prediction(NamedTuple):
    """A prediction of x0 [B, ...] at a timestep [1], and the call that makes it again."""

    x0: Tensor
    timestep: Tensor
    again: Callable[[], Tensor]


@dataclass
class _CriticsTurn:
    """What the host's code leaves behind in the critic's turn.

    Attributes:
        batch: FastVideo's batch, with the conditions of remembered samples where there are some.
        shown: the critic's samples; None before the rollout and without a memory of failures.
        noised: clean samples, noise and timestep of the last call that added noise; after the rollout's it is the critic's own.
        flow: the critic's prediction.
    """

    batch: Any
    shown: Shown | None = None
    noised: tuple[Tensor, ...] = ()
    flow: Tensor | None = None


class Adaptive(_Base):  # type: ignore[misc, valid-type]
    """A mix-in that adds AMD to a method of FastVideo.

    Options under ``method.amd`` are those of `AMDObjective` and a few more. ``reward`` is a name with options, or
    ``{fastvideo: {pickscore: 1.0}}`` for FastVideo's own scorers. ``fast_rollout`` and ``rollouts: harvest`` save forwards.
    ``rung_conditioning`` gives the critic a table of exit rungs; ``outcome_lr`` is the learning rate of its table of outcomes.
    ``held_out`` names rewards that judge the samples of FastVideo's validation. A group holds the samples of one prompt over
    all data-parallel ranks; ``group_size`` gives each row of FastVideo's data to so many neighbouring samples.

    Args:
        cfg, role_models: arguments of the host's method.

    Attributes:
        plugins: manager of rewards, noise-level samplers and strength schedules, set by a subclass; None stands for all
            installed plugins.
        objective: objective that computes the losses.
        bridge: bridge between the objective and FastVideo.
        validation: the alarm's history; None without option ``held_out``.
        failures: the memory of failures; None without option ``memory_share`` or without a reward.
        watched: whether `AMDStateCallback` gives `validation` the host's samples.

    Raises:
        InputError: for an option that is unknown or out of range.
    """

    plugins: PluginManager | None = None
    validation: Validation | None = None
    failures: Failures | None = None
    watched = False

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]):
        method = dict(cfg.method)
        options, self._own = split_options(method.get("amd"), "method.amd")
        self._fast = options.pop("fast_rollout", False)
        check_switch(self._fast, "method.amd.fast_rollout")
        options.setdefault("normalizer", "global")  # as in FastVideo: one mean over the batch
        scale = method.get("real_score_guidance_scale")
        objective = adaptive_objective(1.0 if scale is None else float(scale), options, FASTVIDEO)
        rungs = len(method.get("dmd_denoising_steps") or []) if self._own.rung_conditioning else 0
        outcomes = objective.needs.fake_score_outcome if self._own.reward is not None else False
        conditions = FakeScoreConditions(
            rungs, outcomes, self.plugins or get_plugin_manager(), "method.amd", self._own.outcome_lr
        )  # fmt: skip
        if "critic" in role_models:
            # Before FastVideo builds the critic's optimizer.
            conditions.add_to(role_models["critic"].transformer, method.get("fake_score_learning_rate"))
        super().__init__(cfg=cfg, role_models=role_models)
        if self._own.group_size > 1:  # FastVideo's method has just let the student build its loader
            repeat_rows(self.student.dataloader, self._own.group_size, Ranks(_data_parallel()), "method.amd.group_size")
        self._harvest_all = checked_rollouts(self._own.rollouts, "method.amd.rollouts", self._cannot_harvest())
        self.objective, self._conditions, self._options = objective, conditions, options
        self.bridge = HostBridge(self.objective)
        self._sample: Tensor | None = None  # the last rollout, without graph
        self._scored: tuple[Tensor, Tensor] | None = None  # a rollout, and its advantages
        self._rung: int | Tensor = 0  # of this rank's last rollout
        self._one_rung = False  # whether it is that of all ranks, and then it is a number
        self._metrics: dict[str, Tensor] = {}
        self.tracked = Tracked("amd/")
        self._turn = (0, 0)  # iteration, and micro-batch within it
        self._harvests: dict[int, Harvest] = {}  # of the cycle, by micro-batch
        self._raw_batch: Any = None  # of the turn

    def _cannot_harvest(self) -> str:
        """Why this run has no rollouts to harvest; empty if it has."""
        if isinstance(self, SelfForcingMethod):
            return "needs samples at all rungs of one rollout, and SelfForcingMethod rolls out chunk by chunk to one rung each"
        if self._rollout_mode != "simulate":
            return f"needs rollout_mode: simulate, got {self._rollout_mode!r}, where a turn makes one call from noised data"
        if len(self.method_config.get("dmd_denoising_steps") or ()) < 2:
            return "needs a student of several steps: with one step a turn makes one call"
        return ""

    def on_train_start(self) -> None:
        """Loads the reward, so that one that cannot be used ends the run before its first step."""
        super().on_train_start()
        plugins = self.plugins or get_plugin_manager()
        if isinstance(self._own.reward, dict) and set(self._own.reward) == {"fastvideo"}:
            scorer = HOST.load("fastvideo.train.methods.rl.rewards").build_multi_reward_scorer(
                self._own.reward["fastvideo"], device=self.student.device
            )
            reward: Any = lambda media, prompts: scorer(media, prompts)["avg"]  # noqa: E731
        else:
            reward = make_reward(self._own.reward, plugins, self.student.device)
        if reward is not None and type(self.student).decode_latents is ModelBase.decode_latents:
            message = f"method.amd.reward: needs pictures, but {type(self.student).__name__} has no decode_latents"
            raise InputError(f"{message}. Use a model of FastVideo that has, or leave the reward out")
        # FastVideo's own decodes without gradients, which `reward_gradient` needs; scores are computed without them anyway.
        decode = MethodType(inspect.unwrap(type(self.student).decode_latents), self.student)
        self.bridge = HostBridge(
            self.objective, reward, decode, _data_parallel(), plugins=plugins, options=self._options,
            seed=int(self.training_config.data.seed),
        )  # fmt: skip
        self.failures = Failures.of(self.bridge)
        if self._own.held_out is not None:
            self.validation = Validation(self.bridge, self._own.held_out, plugins, self.student.device)

    def single_train_step(self, batch: dict[str, Any], iteration: int) -> tuple[Any, Any, dict[str, Any]]:
        """FastVideo's training step, with AMD's metrics beside its own."""
        if self.validation is not None and not self.watched:
            message = "needs the callbacks validation and amd (AMDStateCallback), which give it the samples of validations"
            raise InputError(f"method.amd.held_out: {message}. Add both, or leave it out")
        self._turn = (iteration, self._turn[1] + 1 if self._turn[0] == iteration else 0)
        every, last = self._updates_per_cycle, int(self.training_config.loop.max_train_steps)
        self.bridge.start_turn((iteration - 1) // every, last // every, self._metrics)
        self._raw_batch = self._batch_of_cycle(batch) if self._harvest_all else batch
        losses, outputs, metrics = super().single_train_step(self._raw_batch, iteration)
        self._sample, self._scored = None, None
        added = (self._metrics if self._should_update_student(iteration) else {}) | self.bridge.metrics
        return losses, outputs, {**metrics, **self.tracked.named(added)}

    @property
    def _updates_per_cycle(self) -> int:
        """The number of the critic's updates in a cycle, of which the last comes with the student's."""
        return max(1, int(self.method_config.get("generator_update_interval") or 1))

    def _batch_of_cycle(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch whose samples were harvested in this cycle; `batch` before that.

        Samples are not in checkpoints. So a run rolls out anew after each, and a resumed one trains what a straight one does.
        """
        iteration, micro_batch = self._turn
        saves = int(self.training_config.checkpoint.training_state_checkpointing_steps or 0)
        starts = (iteration - 1) % self._updates_per_cycle == 0 or (saves > 0 and (iteration - 1) % saves == 0)
        if starts and micro_batch == 0:
            self._harvests.clear()
        return self._harvests[micro_batch].inputs if micro_batch in self._harvests else batch

    def _harvested(self, batch: Any, with_grad: bool) -> Tensor:
        """The turn's samples of the cycle's rollout, which the cycle's first turn makes."""
        iteration, micro_batch = self._turn
        if micro_batch not in self._harvests:
            self._harvests[micro_batch] = harvest(self, batch, self._raw_batch)
        shared = self._harvests[micro_batch]
        if with_grad:
            self._rung = shared.rung
            x0 = call_at(self, shared.x, shared.rung, batch, with_grad=True)
        else:
            self._rung = shared.rung_of_fake_score((iteration - 1) % self._updates_per_cycle)
            x0 = shared.samples[self._rung]
            rungs = self._get_denoising_step_list(x0.device)
            batch.dmd_latent_vis_dict["generator_timestep"] = rungs[self._rung : self._rung + 1].float()
        self._sample, self._one_rung = x0.detach(), True
        return x0

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        if self._harvest_all:
            return self._harvested(batch, with_grad)
        if self._fast and self._sample is not None and not with_grad:
            return self._sample
        short = self._fast and self._rollout_mode == "simulate" and not isinstance(self, SelfForcingMethod)
        if short:
            x0, self._rung = short_rollout(self, batch, with_grad)
        else:
            x0 = super()._student_rollout(batch, with_grad=with_grad)
            exit_level = batch.dmd_latent_vis_dict.get("generator_timestep")
            if exit_level is not None:  # self-forcing gives none
                # As a tensor: its number would wait for the rollout.
                self._rung = (self._get_denoising_step_list(x0.device) - exit_level).abs().argmin()
        self._one_rung = short
        self._sample = x0.detach()
        return x0

    def _dmd_loss(self, generator_pred_x0: Tensor, batch: Any) -> Tensor:
        self._conditions.choose(self._rung)
        if not (self.bridge.replaces_student_loss or self.bridge.moves_noise_levels or self._fast):
            return super()._dmd_loss(generator_pred_x0, batch)  # type: ignore[no-any-return]
        predictions: list[Prediction] = []
        one_call = one_teacher_call(self.teacher, batch) if self._fast and self._cfg_uncond is None else nullcontext()
        with self._moving_noise_levels("student", batch), one_call, self._recording(predictions):
            loss: Tensor = super()._dmd_loss(generator_pred_x0, batch)
        if not self.bridge.replaces_student_loss:
            return loss
        if len(predictions) != 3:
            raise RunError(f"{HOST.distribution}: _dmd_loss makes {len(predictions)} predictions, not 3. Install {HOST.range}")
        fake, cond, uncond = (prediction.x0 for prediction in predictions)
        fields = {"advantage": self._score(batch), "sigma": self._sigma(predictions[0].timestep, len(fake))}
        fields |= self.bridge.student_fields(generator_pred_x0, self._prompts(batch))
        fields |= self._conditions.contrast(self._rung, predictions[0].again)
        output = self.bridge.student_loss(Signals(generator_pred_x0, cond, uncond, fake, **fields))
        self._metrics = output.metrics
        return output.loss

    @contextmanager
    def _moving_noise_levels(self, role: str, batch: Any) -> Iterator[None]:
        """Applies the plugins' samplers to the one noise level of a turn, within the bounds of FastVideo's settings."""
        if not self.bridge.moves_noise_levels:
            yield
            return

        def move(shift: Callable[..., Tensor], timestep: Tensor) -> Tensor:
            drawn, horizon = shift(timestep), int(self.student.num_train_timesteps)
            if self.bridge.uses_reward:
                self._score(batch)
            moved = self.bridge.move_noise_levels(drawn.float() / horizon, role, *self._turn) * horizon
            return (moved if drawn.is_floating_point() else moved.round()).to(drawn.dtype)

        with wrapped(self.student, "shift_and_clamp_timestep", move):
            yield

    @contextmanager
    def _recording(self, predictions: list[Prediction]) -> Iterator[None]:
        """Appends the predictions of critic and teacher to `predictions`, in that order."""

        def record(predict: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            _, timestep = (arg for arg in args if isinstance(arg, Tensor))
            call = functools.partial(predict, *args, **kwargs)
            predictions.append(Prediction(call(), timestep, call))
            return predictions[-1].x0

        if isinstance(self, SelfForcingMethod):
            with wrapped(self, "_predict_x0_with_scheduler", record):
                yield
        else:
            with wrapped(self.critic, "predict_x0", record), wrapped(self.teacher, "predict_x0", record):
                yield

    def _critic_flow_matching_loss(self, batch: Any) -> tuple[Tensor, Any, dict[str, Any]]:
        if not (self.bridge.weighs_fake_score or self._conditions.parameters() or self.failures is not None):
            with self._moving_noise_levels("fake_score", batch):
                return super()._critic_flow_matching_loss(batch)  # type: ignore[no-any-return]
        turn = _CriticsTurn(batch)

        def with_failures(roll_out: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            """The rollout's samples, some of them replaced by remembered failures."""
            x0 = roll_out(*args, **kwargs)
            return x0 if self.failures is None else self._exchange(x0, turn)

        def record_noise(add: Callable[..., Tensor], *args: Tensor) -> Tensor:
            """Noisy samples, of which the parts are kept."""
            turn.noised = args
            return add(*args)

        def record_flow(predict: Callable[..., Tensor], x_t: Tensor, timestep: Tensor, _: Any, **kwargs: Any) -> Tensor:
            """The critic's prediction, for samples that have a rung and an outcome only now that they were rolled out."""
            self._conditions.choose(self._rung, self._outcomes(turn))
            turn.flow = predict(x_t, timestep, turn.batch, **kwargs)
            return turn.flow

        add_noise = (self, "_sf_add_noise") if isinstance(self, SelfForcingMethod) else (self.student, "add_noise")
        critic, rollout = wrapped(self.critic, "predict_noise", record_flow), wrapped(self, "_student_rollout", with_failures)
        with self._moving_noise_levels("fake_score", batch), wrapped(*add_noise, record_noise), critic, rollout:
            loss, context, outputs = super()._critic_flow_matching_loss(batch)
        if not self.bridge.weighs_fake_score or turn.flow is None:
            return loss, context, outputs
        x0, noise, timestep = turn.noised
        self._score(batch)
        weight = self.bridge.weights(self._sigma(timestep, len(x0)))
        weight = weight if turn.shown is None else turn.shown.weight(weight, self._conditions.takes_outcomes)
        return self.objective.fake_score_loss(turn.flow, noise - x0, weight).loss, context, outputs

    def _outcomes(self, turn: _CriticsTurn) -> int | Tensor:
        """The outcomes [B] of the samples for which the critic is trained."""
        if not self._conditions.takes_outcomes:
            return NONE
        self._score(turn.batch)
        outcomes = self.bridge.outcomes("fake_score", *self._turn)
        return outcomes if turn.shown is None else turn.shown.outcome(outcomes)

    def _exchange(self, x0: Tensor, turn: _CriticsTurn) -> Tensor:
        """The samples of the critic's turn, some replaced by remembered failures; `turn` gets their conditions."""
        assert self.failures is not None  # noqa: S101
        shared = self._harvests.get(self._turn[1])
        are_new = shared is None or self._rung not in shared.scores
        self._score(turn.batch)
        turn.shown = self.failures.exchange(
            x0, turn.batch.conditional_dict, self._rung, *self._turn, are_new=are_new
        )  # fmt: skip
        turn.batch = copy.copy(turn.batch)
        turn.batch.conditional_dict = turn.shown.inputs
        return turn.shown.x0

    def _sigma(self, timestep: Tensor, batch_size: int) -> Tensor:
        """Noise levels [B], as fractions of the schedule, from the host's timestep [1] of all samples of a rank."""
        return (timestep.float() / int(self.student.num_train_timesteps)).expand(batch_size)

    def _score(self, batch: Any) -> Tensor:
        """Advantages [B] of the last rollout, which is scored once even if turns share it."""
        x0 = self._sample
        if x0 is None:
            raise RunError(f"{HOST.distribution}: a loss is computed before any rollout. Install {HOST.range}")
        shared = self._harvests.get(self._turn[1])
        if shared is not None and (scored := shared.scores.get(int(self._rung))) is not None:
            return self.bridge.recall(scored, x0.device)
        if self._scored is None or self._scored[0] is not x0:
            prompts = self._prompts(batch)
            groups = group_ids(prompts or (batch.conditional_dict or {}).get("encoder_hidden_states"), len(x0))
            self._scored = (x0, self.bridge.advantages(x0, groups, prompts, rung=self._rung if self._one_rung else 0))
            if shared is not None:
                shared.scores[int(self._rung)] = self.bridge.scored()
        return self._scored[1]

    def _prompts(self, batch: Any) -> list[str] | None:
        """The texts of the samples; None if there are none."""
        infos = getattr(batch, "infos", None) or []
        prompts = [str(info.get("prompt") or info.get("caption") or "") for info in infos]
        return prompts if any(prompts) else None


def _data_parallel() -> Any:
    """The group of ranks with different samples; ranks of one sequence-parallel group share theirs."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return HOST.load("fastvideo.distributed").get_dp_group().device_group
