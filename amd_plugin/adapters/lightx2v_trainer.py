"""AMD in the turns of LightX2V's trainers: predictions of its own code are recorded, and two of its losses replaced.

A turn in which AMD has nothing to do runs LightX2V's own code unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.adapters.failures import Failures
from amd_plugin.adapters.harvest import checked_rollouts
from amd_plugin.adapters.host_objective import adaptive_objective
from amd_plugin.adapters.lightx2v_data import repeating_loader
from amd_plugin.adapters.lightx2v_host import distributed
from amd_plugin.adapters.lightx2v_records import Records
from amd_plugin.adapters.lightx2v_turn import Turn, pictures
from amd_plugin.adapters.method_wrapping import wrapped
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.offers import LIGHTX2V_IMAGE, LIGHTX2V_VIDEO
from amd_plugin.adapters.own_options import OwnOptions, split_options
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.validation import Validation
from amd_plugin.contract import gradient_option
from amd_plugin.errors import InputError, RunError
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

_TEACHERS, _FAKE_ROLES = ("teacher_model", "teacher_2_model"), ("fake", "fake_2", "fake_low_high")
_FAKES = tuple(f"{role}_model" for role in _FAKE_ROLES)


class Adaptive(Records):
    """A mix-in that adds AMD to a trainer of LightX2V, with options under ``training.dmd.amd``.

    Samples of one prompt over all data-parallel ranks form a group; ``group_size`` gives each row of the data to so many
    neighbouring samples. ``outcome_lr`` is the learning rate of the fake scores' tables of outcomes. Rewards get the pictures
    of the model's `decode_latent`.

    Args:
        config: LightX2V's configuration.

    Attributes:
        plugins: manager of rewards, noise-level samplers and strength schedules, set by a subclass; None stands for all
            installed plugins.
        offers: what the trainer can give an objective, as names of fields of `amd_plugin.hookspecs.Needs`.
        objective: objective that computes the losses.
        bridge: bridge between the objective and LightX2V.

    Raises:
        InputError: for an option that is unknown or out of range.
    """

    plugins: PluginManager | None = None
    offers = LIGHTX2V_IMAGE

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self._options, self._own = options_of(config)
        self.objective = adaptive_objective(self._guidance(), self._options, self.offers)
        if self._own.rung_conditioning and (why := self._no_rungs()):
            raise InputError(f"training.dmd.amd.rung_conditioning: {why}. Leave it out")
        outcomes = self.objective.needs.fake_score_outcome if self._own.reward is not None else False
        rungs = self.num_inference_steps if self._own.rung_conditioning else 0
        with_lora = [role for role in _FAKE_ROLES if config["training"].get(role, {}).get("train_type") == "lora"]
        if with_lora and (rungs or outcomes is True):
            option = "rung_conditioning" if rungs else "advantage_guidance"
            message = f"needs training.{with_lora[0]}.train_type: full, as a checkpoint of lora has nothing beside it"
            raise InputError(f"training.dmd.amd.{option}: {message}")
        outcomes = False if with_lora else outcomes
        self._conditions = FakeScoreConditions(
            rungs, outcomes, self.plugins or get_plugin_manager(), "training.dmd.amd", self._own.outcome_lr
        )
        self.bridge = HostBridge(self.objective)
        self._rung = 0
        self._turn: Turn | None = None
        self._prompts: list[str] | None = None
        self._scored: tuple[Tensor, Tensor] | None = None  # samples, and their advantages
        self._metrics: dict[str, Tensor] = {}

    def _guidance(self) -> float:
        """The guidance scale of the teacher in the standard form; up to 1, LightX2V calls it without guidance."""
        scale = float(getattr(self, "guidance_distill", None) or self.guidance_scale)
        return scale if self.guidance_scale > 1 else 1.0

    def _no_rungs(self) -> str:
        """Why samples have no exit rung here; empty if they have one."""
        if "rung_conditioning" not in self.offers:
            return "this trainer does not train its fake scores on samples of the rungs"
        return "training.dmd.random_schedule draws other rungs for each update" if self.random_schedule_enabled else ""

    def _setup_trainable_model(self, model: Any, role: str = "student") -> None:
        super()._setup_trainable_model(model, role=role)
        if role in _FAKE_ROLES:  # before it is sharded, and before its optimizer
            optimizer = getattr(self, f"{role}_optimizer_config", {})
            # Of `fake` LightX2V fills in the student's rate where the configuration has none.
            rate = optimizer.get("learning_rate", getattr(self, f"{role}_optimizer_learning_rate", None))
            self._conditions.add_to(model.denoiser_module(), rate)

    def _setup_ida_trick(self) -> None:
        with self._conditions.hidden():  # the trick pairs the student's parameters with the fake score's
            super()._setup_ida_trick()

    def set_data(self, dataloader_train: Any, dataloader_eval: Any = None) -> None:
        """LightX2V's data; with ``group_size`` each row of its training data is for so many samples of a joined batch."""
        if self._own.group_size > 1:
            ranks, where = Ranks(distributed.get_data_parallel_group()), "training.dmd.amd.group_size"
            dataloader_train = repeating_loader(dataloader_train, self._own.group_size, ranks, where)
        super().set_data(dataloader_train, dataloader_eval)

    def setup(self, resume_ckpt_path: str | None = None) -> None:
        """LightX2V's setup; loads the reward first, so that one that cannot be used ends the run before its first step."""
        if self.objective.needs.reward_gradient is True and not self._decodes_with_graph:
            message = f"{type(self.model).__name__} has no image_processor, and gives pictures without a graph"
            raise InputError(f"training.dmd.amd.{gradient_option(self.objective)}: {message}. Leave it out")
        plugins = self.plugins or get_plugin_manager()
        reward = make_reward(self._own.reward, plugins, self.model.device)
        self.bridge = HostBridge(
            self.objective, reward, self._media, distributed.get_data_parallel_group(), plugins=plugins,
            options=self._options,
        )  # fmt: skip
        self.failures = Failures.of(self.bridge)
        if self._own.held_out is not None:
            if not self.infer_every_iters:
                message = "judges the samples of inference.infer_every_iters, and there are none"
                raise InputError(f"training.dmd.amd.held_out: {message}. Set it, or leave this out")
            self.validation = Validation(self.bridge, self._own.held_out, plugins, self.model.device)
        super().setup(resume_ckpt_path=resume_ckpt_path)

    def run_inference(self, current_iter: int) -> None:
        """LightX2V's validation; its samples are judged, and the metrics go to its log and tracker."""
        if self.validation is None:
            super().run_inference(current_iter)
            return
        prompts = [row["prompt"] for row in self.dataloader_eval.dataset.samples]
        own = iter(prompts[distributed.get_data_parallel_rank() :: distributed.get_data_parallel_world_size()])

        def judged(decode: Any, latent: Tensor) -> Any:
            decoded = decode(latent)
            assert self.validation is not None  # noqa: S101
            self.validation.add(pictures(decoded), [next(own)])
            return decoded

        with wrapped(self.model, "decode_latent", judged):
            super().run_inference(current_iter)
        self.log_validation(self.validation.finish(current_iter), current_iter)

    @property
    def _decodes_with_graph(self) -> bool:
        return hasattr(self.model, "image_processor")

    def _media(self, x0: Tensor) -> Tensor:
        """Decoded samples in [0, 1], with their graph where the model converts them by an `image_processor` of diffusers."""
        if not self._decodes_with_graph:
            return pictures(self.model.decode_latent(x0))

        def as_tensor(convert: Any, image: Tensor, output_type: str) -> Tensor:
            kept: Tensor = convert(image, output_type="pt")
            return kept.float()

        with wrapped(self.model.image_processor, "postprocess", as_tensor):
            media: Tensor = self.model.decode_latent(x0)
        return media

    def _encode_conditions(self, sample: Mapping[str, Any]) -> Any:
        prompt = sample["conditioning"].get("prompt")
        self._prompts = [prompt] if isinstance(prompt, str) else list(prompt) if prompt else None
        return super()._encode_conditions(sample)

    def _sample_synced_int(self, low: int, high: int) -> int:
        # The last integer that is drawn before a loss is the exit rung, the same on all ranks.
        drawn: int = super()._sample_synced_int(low, high)
        self._rung = 0 if self.random_schedule_enabled else drawn
        return drawn

    @contextmanager
    def _started_turn(self, role: str, condition: Any, x0: Tensor | None = None) -> Iterator[Turn | None]:
        """A context in which predictions are recorded and noise levels moved; None where LightX2V's code runs unchanged."""
        replaces = self.bridge.replaces_student_loss if role == "student" else self.bridge.weighs_fake_score
        if not (replaces or self.bridge.moves_noise_levels or self._conditions.parameters() or self.failures is not None):
            yield None
            return
        self.turns += 1
        self.bridge.start_turn(self.student_updates, int(self.max_train_iters), self._metrics)
        self._turn, self._scored = Turn(role, condition, replaces, x0), None
        try:
            yield self._turn
        finally:
            self._turn = None

    def forward_loss(self, latent_shape: Any, conditions: Any, stage: str, **host: Any) -> Any:
        """LightX2V's loss of a turn, with AMD's in place of the matching loss and of the fake score's."""
        role = "fake_score" if stage == "fake" else "student"
        with self._started_turn(role, conditions[0]) as turn:
            if turn is None:
                return super().forward_loss(latent_shape, conditions, stage, **host)
            with (
                wrapped(self.scheduler, "sample_renoise_sigma", self._moved_renoise_sigma),
                wrapped(self.scheduler, "build_train_gt", turn.record_target),
            ):
                losses = super().forward_loss(latent_shape, conditions, stage, **host)
            if role == "student" or not turn.replaces:
                return losses
            loss = self._weighted_loss(turn)
            return {**losses, "fake": loss} if isinstance(losses, dict) else loss

    def run_back_simulation(self, *args: Any, **kwargs: Any) -> Any:
        """LightX2V's rollout; its sample is kept for the turn's reward, and some may be replaced by remembered failures."""
        rollout = super().run_back_simulation(*args, **kwargs)
        turn = self._turn
        if turn is None:
            return rollout
        turn.x0 = rollout[0]
        if turn.role == "student" or self.failures is None:
            return rollout
        self._score(turn, turn.x0)
        turn.shown = self.failures.exchange(turn.x0, turn.condition, self._rung, self.turns)
        return (turn.shown.x0, *rollout[1:])

    def _predict_velocity(self, model: Any, latents: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        turn, predict = self._turn, super()._predict_velocity
        if turn is None or turn.matched:
            return predict(model, latents, sigma, condition)  # type: ignore[no-any-return]
        if any(model is getattr(self, name, None) for name in _FAKES):
            self._conditions.choose(self._rung, self._outcomes(turn))
            condition = condition if turn.shown.remembered is None else turn.shown.inputs
            turn.fake_again = functools.partial(predict, model, latents, sigma, condition)
            velocity: Tensor = turn.fake_again()
            turn.fake = (latents, sigma, velocity)
        else:
            velocity = predict(model, latents, sigma, condition)
            if turn.cond is None and any(model is getattr(self, name, None) for name in _TEACHERS):
                turn.cond = velocity
        return velocity

    def _outcomes(self, turn: Turn) -> int | Tensor:
        """The outcomes [B] of the turn's samples, for which the fake score is trained; none in a student's turn."""
        if turn.role == "student" or not self._conditions.takes_outcomes or turn.x0 is None:
            return NONE
        self._score(turn, turn.x0)
        return turn.shown.outcome(self.bridge.outcomes("fake_score", self.turns))

    def _predict_teacher_velocity(self, latents: Tensor, sigma: Tensor, *conditions: Any) -> Tensor:
        turn, teacher = self._turn, self.teacher_model
        if turn is None or turn.matched or conditions[-1] is None or not teacher.cfg_on_denoiser_output():
            return super()._predict_teacher_velocity(latents, sigma, *conditions)  # type: ignore[no-any-return]
        velocity: Tensor = super()._predict_teacher_velocity(latents, sigma, *conditions)
        # Guidance was applied to packed outputs; the conditional one that `_do_cfg` got is unpacked as the guided one was.
        turn.cond = teacher.postprocess_denoiser_output(turn.cond, teacher.prepare_denoiser_input(latents))
        return velocity

    def _do_cfg(self, cond_pred: Tensor, uncond_pred: Tensor, cfg_scale: float, cfg_norm: str) -> Tensor:
        if self._turn is not None and self._turn.cond is None:
            self._turn.cond = cond_pred
        return super()._do_cfg(cond_pred, uncond_pred, cfg_scale, cfg_norm)  # type: ignore[no-any-return]

    def _dmd_loss(
        self, latents: Tensor, x_pred_fake_flow: Tensor, x_pred_teacher: Tensor, norm_clip_min: float | None = None
    ) -> Tensor:
        loss: Tensor = super()._dmd_loss(latents, x_pred_fake_flow, x_pred_teacher, norm_clip_min=norm_clip_min)
        turn = self._turn
        # The tricks call this too, after the turn's own call; their losses stay as they are.
        if turn is None or turn.matched or not turn.replaces:
            return loss
        turn.matched = True
        advantage = self._score(turn, latents)
        cond, sigma = turn.conditional_x0(), turn.sigma
        fields = {"sigma": sigma.float(), "advantage": advantage, **self.bridge.student_fields(latents, self._prompts)}
        fields |= self._conditions.contrast(self._rung, turn.fake_x0_again)
        uncond = turn.unconditional_x0(cond, x_pred_teacher, self.objective.guidance_scale)
        output = self.bridge.student_loss(Signals(latents, cond, uncond, x_pred_fake_flow, **fields))
        self._metrics = output.metrics
        return output.loss

    def _weighted_loss(self, turn: Turn) -> Tensor:
        """The fake score's loss with a weight per sample, from the turn's recorded prediction and target."""
        if turn.fake is None or turn.target is None or turn.x0 is None:
            raise RunError("lightx2v_train: a fake-score turn lacks a prediction, a target or a sample. Use a newer amd-plugin")
        self._score(turn, turn.x0)
        weight = turn.shown.weight(self.bridge.weights(turn.sigma), self._conditions.takes_outcomes)
        return self.objective.fake_score_loss(turn.fake[2].float(), turn.target.float(), weight).loss

    def _score(self, turn: Turn, x0: Tensor) -> Tensor:
        """Advantages [B] of the turn's samples, which are scored once."""
        if self._scored is None or self._scored[0] is not x0:
            groups = group_ids(self._prompts or turn.embeddings(), len(x0))
            self._scored = (x0, self.bridge.advantages(x0, groups, self._prompts, rung=self._rung))
        return self._scored[1]

    def _moved(self, sigma: Tensor, low: float, high: float) -> Tensor:
        """Noise levels [B] after the plugins' samplers, from the host's draw, within the host's bounds."""
        turn = self._turn
        if turn is None or not self.bridge.moves_noise_levels:
            return sigma
        if self.bridge.uses_reward and turn.x0 is not None:
            self._score(turn, turn.x0)
        return self.bridge.move_noise_levels(sigma, turn.role, self.turns).clamp(low, high)

    def _moved_renoise_sigma(self, sample: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._moved(sample(*args, **kwargs), self.scheduler.renoise_sigma_min, self.scheduler.renoise_sigma_max)


class AdaptiveWan(Adaptive):
    """`Adaptive` for trainers of Wan, which decodes to pictures with their graph."""

    offers = LIGHTX2V_VIDEO
    _decodes_with_graph = True

    def _media(self, x0: Tensor) -> Tensor:
        """Decoded samples [B, 3, T, H, W] in [0, 1], with their graph."""
        videos = self.model.vae.decode(list(x0.to(self.model.device, self.model.vae_dtype)))
        return torch.stack(videos).float() / 2 + 0.5


class AdaptiveVideo(AdaptiveWan):
    """`AdaptiveWan` for trainers that draw noise levels by timestep."""

    def _sample_score_sigma(self, batch_size: int, *args: Any, **kwargs: Any) -> Tensor:
        sigma: Tensor = super()._sample_score_sigma(batch_size, *args, **kwargs)
        return self._moved(sigma, self.min_step / self.num_train_timestep, self.max_step / self.num_train_timestep)


def options_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], OwnOptions]:
    """The options of the objective, and those of the adapter, of ``training.dmd.amd``."""
    section: Any = config
    for place in ("training", "training.dmd"):
        section = section.get(place.rpartition(".")[2])
        if not isinstance(section, Mapping):
            raise InputError(f"{place}: must be a mapping of options, got {section!r}")
    if elsewhere := [place for place in _places_of("amd", config) if place != "training.dmd.amd"]:
        raise InputError(f"{elsewhere[0]}: nobody reads it there. Move it to training.dmd.amd")
    options, own = split_options(section.get("amd"), "training.dmd.amd")
    one_rung_each = "needs samples at all rungs of one rollout, and LightX2V's trainers roll out to one rung each"
    checked_rollouts(own.rollouts, "training.dmd.amd.rollouts", one_rung_each)
    if own.reward is not None and not (config.get("model") or {}).get("load_vae", True):
        raise InputError("training.dmd.amd.reward: needs pictures, but model.load_vae is false. Set it to true")
    return options, own


def _places_of(name: str, section: Mapping[str, Any], start: str = "") -> Iterator[str]:
    """The places of options called `name` in nested sections."""
    for key, value in section.items():
        if key == name:
            yield start + key
        elif isinstance(value, Mapping):
            yield from _places_of(name, value, f"{start}{key}.")
