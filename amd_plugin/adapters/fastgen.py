"""AMD in NVIDIA FastGen: `AMDModel`, named by ``model_class._target_`` on FastGen's command line, after its ``-``.

    model_class._target_=amd_plugin.adapters.fastgen.AMDModel '+model_class.amd={sharpening: 1.0, reward: {name: clip}}'

FastGen is on GitHub only; the package fastgen on PyPI is unrelated. FastGen's own code draws noise, calls the networks and
computes the adversarial terms. Hooks record the networks' predictions, and AMD's losses replace FastGen's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.adapters.failures import Failures, Shown
from amd_plugin.adapters.fastgen_batch import plain, predictions_of, texts_of
from amd_plugin.adapters.fastgen_host import Callback, DMD2Model, EDMNoiseSchedule, load
from amd_plugin.adapters.fastgen_host import losses as host_losses
from amd_plugin.adapters.fastgen_levels import level, position
from amd_plugin.adapters.harvest import checked_rollouts
from amd_plugin.adapters.host_metrics import Tracked
from amd_plugin.adapters.host_objective import adaptive_objective
from amd_plugin.adapters.method_wrapping import wrapped
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.offers import FASTGEN
from amd_plugin.adapters.own_options import check_switch, split_options
from amd_plugin.adapters.run_state import restore, state_of
from amd_plugin.adapters.validation import Validation
from amd_plugin.adapters.weighted_loss import weighted_loss
from amd_plugin.errors import InputError, RunError
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

log = logging.getLogger(__name__)


class AMDModel(DMD2Model):  # type: ignore[misc]
    """FastGen's `DMD2Model` with AMD.

    Args:
        config: configuration of `DMD2Model`.
        amd: options of `AMDObjective`, and five more. ``reward`` is a name with options, a list of these, or a callable. With
            ``share_rungs``, samples of one prompt leave a student of several steps at one rung, and rewards have statistics for
            each. ``rung_conditioning`` gives the fake score a table of exit rungs; ``outcome_lr`` is the learning rate of its
            table of outcomes. ``held_out`` names rewards that judge the samples of FastGen's validation.
        decode: function of samples to media; None decodes with the network's autoencoder, or not at all if it has none.

    Attributes:
        plugins: manager of rewards, noise-level samplers and strength schedules, set by a subclass; None stands for all
            installed plugins.
        objective: objective that computes the losses.
        bridge: bridge between the objective and FastGen.
        validation: the alarm's history; None without option ``held_out``.
        failures: the memory of failures; None without option ``memory_share`` or without a reward.
        max_iter: number of iterations of FastGen's trainer, set by `AMDStateCallback`; 0 if unknown.
        watched: whether `AMDStateCallback` gives `validation` samples.

    Raises:
        InputError: for an option that is unknown or out of range.
    """

    plugins: PluginManager | None = None
    max_iter = 0
    watched = False

    def __init__(self, config: Any, amd: Mapping[str, Any] | None = None, decode: Callable[[Tensor], Tensor] | None = None):
        options, own = split_options(plain(amd), "model_class.amd")
        share, plugins = options.pop("share_rungs", False), self.plugins or get_plugin_manager()
        check_switch(share, "model_class.amd.share_rungs")
        if share and config.student_sample_steps == 1:
            message = "needs a student of several steps, and this one has one"
            raise InputError(f"model_class.amd.share_rungs: {message}. Leave it out")
        # Its students of several steps are trained from noised data, by one call.
        checked_rollouts(own.rollouts, "model_class.amd.rollouts", "needs rollouts, and FastGen has none")
        if own.group_size > 1:
            message = "needs a host that deals its rows out to the ranks, and FastGen's ranks read shards of their own"
            raise InputError(f"model_class.amd.group_size: {message}. Leave it out, and repeat prompts in the data")
        reward = make_reward(own.reward, plugins, torch.device(config.device))
        scale = 1.0 if config.guidance_scale is None else float(config.guidance_scale)
        objective = adaptive_objective(scale, options, FASTGEN)
        rungs = config.student_sample_steps if own.rung_conditioning else 0
        outcomes = objective.needs.fake_score_outcome if reward is not None else False
        if (rungs or outcomes) and config.fsdp_meta_init:
            message = "needs a fake score with weights, and model.fsdp_meta_init builds it without. Set that to False"
            raise InputError(f"model_class.amd.{'rung_conditioning' if rungs else 'advantage_guidance'}: {message}")
        self._conditions = FakeScoreConditions(rungs, outcomes, plugins, "model_class.amd", own.outcome_lr)
        super().__init__(config)
        self.objective = objective
        self.bridge = HostBridge(objective, reward, decode or self._decode, plugins=plugins, options=options)
        self.validation = None
        if own.held_out is not None:
            self.validation = Validation(self.bridge, own.held_out, plugins, torch.device(config.device))
        self.failures = Failures.of(self.bridge)
        self._share = share and self.bridge.uses_reward
        self._rungs: Tensor | None = None  # exit rungs [B] of the turn's samples; None for a student of one step
        self._data: Mapping[str, Any] = {}
        self._sample: Tensor | None = None  # the turn's student sample, for the host's next call of gen_data_from_net
        self._turn, self._metrics = (0, 0), dict[str, Tensor]()  # turn: iteration, and micro-batch within it
        self._prompts: list[str] | None = None
        self.tracked = Tracked("amd_")

    def build_model(self) -> None:
        """FastGen's networks; the fake score's tables come before its optimizer and before DDP or FSDP."""
        super().build_model()
        self._conditions.add_to(self.fake_score, getattr(self.config.fake_score_optimizer, "lr", None))

    def _decode(self, x0: Tensor) -> Tensor:
        """Media in [0, 1] of samples, which are latents or, as the media that a decoder makes, pixels in [-1, 1]."""
        if not hasattr(self.net, "vae") and hasattr(self.net, "init_vae"):  # left out with enable_preprocessors: False
            self.net.init_vae()
            self.net.vae.to(device=x0.device, dtype=x0.dtype)
        media: Tensor = self.net.vae.decode(x0) if hasattr(self.net, "vae") else x0
        return ((media + 1) / 2).clamp(0, 1)

    def single_train_step(self, data: dict[str, Any], iteration: int) -> Any:
        """FastGen's training step; its validation steps, which run without gradients, stay without AMD."""
        if self.validation is not None and not self.watched and torch.is_grad_enabled():
            message = "judges the samples of FastGen's validation: it needs dataloader_val, and the callback AMDStateCallback"
            raise InputError(f"model_class.amd.held_out: {message}. Add both, or leave it out")
        self._turn = (iteration, self._turn[1] + 1 if self._turn[0] == iteration else 0)
        self._data, every, self._prompts = data, self.config.student_update_freq, texts_of(data)
        if torch.is_grad_enabled():
            self.bridge.start_turn(max(0, iteration - 1) // every, self.max_iter // every, self._metrics)
        return super().single_train_step(data, iteration)

    def _generate_noise_and_time(self, real_data: Tensor) -> Any:
        """FastGen's draws; the indices of the exit rungs are kept, and with ``share_rungs`` made the same for a prompt."""

        def draw(sample: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            t, self._rungs = sample(*args, **kwargs, return_ids=True)
            if self._share and torch.is_grad_enabled():
                groups = self._groups(self._data.get("condition"), len(t))
                t, self._rungs = (self.bridge.one_rung_per_group(values, groups) for values in (t, self._rungs))
            return t

        self._rungs = None
        with wrapped(self.net.noise_scheduler, "sample_from_t_list", draw):
            return super()._generate_noise_and_time(real_data)

    def gen_data_from_net(self, input_student: Tensor, t_student: Tensor, condition: Any = None) -> Tensor:
        """FastGen's student sample; the one that was scored already, if the turn has one."""
        sample, self._sample = self._sample, None
        if sample is None:
            sample = super().gen_data_from_net(input_student, t_student, condition=condition)
        return sample

    def _compute_teacher_prediction_gan_loss(self, perturbed_data: Tensor, t: Tensor, condition: Any = None) -> Any:
        # The host builds the teacher's graph even if no gradient is needed, and discards it.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.gan_loss_weight_gen > 0):
            return super()._compute_teacher_prediction_gan_loss(perturbed_data, t, condition=condition)

    def _score(self, x0: Tensor, condition: Any) -> Tensor:
        """Advantages [B] of student samples."""
        rung = self._rungs if self._share and self._rungs is not None else 0
        return self.bridge.advantages(x0, self._groups(condition, len(x0)), self._prompts, rung=rung)

    def prompts_of(self, data: Mapping[str, Any], count: int) -> list[str]:
        """Texts of `count` samples of a batch, or else names by which samples of the same condition have the same."""
        return texts_of(data) or [str(group) for group in self._groups(data.get("condition"), count).tolist()]

    def _groups(self, condition: Any, batch_size: int) -> Tensor:
        """Ids [B] of the prompts."""
        texts = condition.get("text_embeds") if isinstance(condition, Mapping) else condition
        return group_ids(self._prompts or (texts[0] if isinstance(texts, list | tuple) else texts), batch_size)

    def _fractions(self, t: Tensor) -> Tensor:
        """Noise levels [B] as fractions of the schedule, from FastGen's times: with EDM the places among its steps."""
        schedule = self.net.noise_scheduler
        fractions: Tensor = position(t, schedule.sigmas) if isinstance(schedule, EDMNoiseSchedule) else t / schedule.max_t
        return fractions

    def _move_noise_levels(self, t: Tensor, role: str) -> Tensor:
        """FastGen's times [B] after the plugins' samplers, from its draw."""
        schedule, moved = self.net.noise_scheduler, self.bridge.move_noise_levels(self._fractions(t), role, *self._turn)
        times: Tensor = level(moved, schedule.sigmas) if isinstance(schedule, EDMNoiseSchedule) else moved * schedule.max_t
        return times

    def _student_update_step(
        self,
        input_student: Tensor,
        t_student: Tensor,
        t: Tensor,
        eps: Tensor,
        data: Any,
        condition: Any = None,
        neg_condition: Any = None,
    ) -> Any:
        turn, bridge = super()._student_update_step, self.bridge
        self._conditions.choose(self._rungs)
        if not (torch.is_grad_enabled() and (bridge.replaces_student_loss or bridge.moves_noise_levels)):
            return turn(input_student, t_student, t, eps, data, condition=condition, neg_condition=neg_condition)
        x0 = self._sample = self.gen_data_from_net(input_student, t_student, condition=condition)
        advantage = self._score(x0, condition)
        t = self._move_noise_levels(t, "student") if bridge.moves_noise_levels else t
        with predictions_of(self.fake_score) as fake, predictions_of(self.teacher) as real:
            losses, outputs = turn(input_student, t_student, t, eps, data, condition=condition, neg_condition=neg_condition)
        if not bridge.replaces_student_loss:
            return losses, outputs
        guided = self.config.guidance_scale is not None
        if len(fake) != 1 or len(real) != 1 + guided:
            message = f"a student step makes {len(fake)} fake-score and {len(real)} teacher calls, not 1 and {1 + guided}"
            raise RunError(f"fastgen: {message}. Use a newer amd-plugin")
        sigma, uncond = self._fractions(t), real[1].x0 if guided else None
        fields = bridge.student_fields(x0, self._prompts) | self._conditions.contrast(self._rungs, fake[0].again)
        output = self.bridge.student_loss(Signals(x0, real[0].x0, uncond, fake[0].x0, sigma, advantage, **fields))
        self._metrics = output.metrics
        metrics = self.tracked.named(output.metrics | bridge.metrics)
        total = losses["total_loss"] - losses["vsd_loss"] + output.loss
        return {**losses, **metrics, "vsd_loss": output.loss, "total_loss": total}, outputs

    def _fake_score_discriminator_update_step(
        self, input_student: Tensor, t_student: Tensor, t: Tensor, eps: Tensor, real_data: Tensor, condition: Any = None
    ) -> Any:  # fmt: skip
        turn, bridge = super()._fake_score_discriminator_update_step, self.bridge
        self._conditions.choose(self._rungs)
        scored = bridge.weighs_fake_score or self._conditions.takes_outcomes or self.failures is not None
        if not (torch.is_grad_enabled() and (scored or bridge.moves_noise_levels)):
            return turn(input_student, t_student, t, eps, real_data, condition=condition)
        with torch.no_grad():
            x0 = self._sample = self.gen_data_from_net(input_student, t_student, condition=condition)
        self._score(x0, condition)
        outcome = bridge.outcomes("fake_score", *self._turn) if self._conditions.takes_outcomes else NONE
        shown = self._replayed(x0, condition, real_data)
        self._sample = shown.x0
        self._conditions.choose(self._rungs, shown.outcome(outcome))
        t = self._move_noise_levels(t, "fake_score") if bridge.moves_noise_levels else t
        with predictions_of(self.fake_score) as fake:
            losses, outputs = turn(input_student, t_student, t, eps, **shown.inputs)
        if not bridge.weighs_fake_score:
            return losses, outputs
        if len(fake) != 1:
            raise RunError(f"fastgen: a fake-score step makes {len(fake)} fake-score calls, not 1. Use a newer amd-plugin")
        space = self.config.fake_score_pred_type or self.teacher.net_pred_type

        def loss_of(prediction: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
            loss: Tensor = host_losses.denoising_score_matching_loss(
                space, net_pred=prediction, x0=x0, eps=eps, noise_scheduler=self.net.noise_scheduler, t=t
            )
            return loss

        weight = shown.weight(bridge.weights(self._fractions(t)), self._conditions.takes_outcomes)
        loss = weighted_loss(loss_of, weight, fake[0].x0, shown.x0, eps, t)
        total = losses["total_loss"] - losses["fake_score_loss"] + loss
        return {**losses, "fake_score_loss": loss, "total_loss": total}, outputs

    def _replayed(self, x0: Tensor, condition: Any, real_data: Tensor) -> Shown:
        """Samples of the fake score's turn with what the host gets beside them; some are remembered failures."""
        given = {"condition": condition, "real_data": real_data}
        if self.failures is None:
            return Shown(x0, given)
        # The discriminator compares samples with real ones of the same condition; without it nobody reads real ones.
        kept = given if self.config.gan_loss_weight_gen > 0 else {"condition": condition}
        shown = self.failures.exchange(x0, kept, 0 if self._rungs is None else self._rungs, *self._turn)
        return shown._replace(inputs=given | shown.inputs)


class AMDStateCallback(Callback):  # type: ignore[misc]
    """Puts AMD's running statistics into FastGen's checkpoints; ``amd-plugin host fastgen`` adds it by itself.

    '+trainer.callbacks.amd={_target_: amd_plugin.adapters.fastgen.AMDStateCallback}'
    """

    def on_model_init_start(self, model: Any) -> None:
        """Keeps the model for checkpoints, and sets the length and the seed of the run."""
        self._model = model
        model.max_iter, model.bridge.seed = int(self.config.trainer.max_iter), int(self.config.trainer.seed)

    def on_dataloader_init_end(self, model: Any, dataloader_train: Any, dataloader_val: Any, iteration: int = 0) -> None:
        """Tells the model whether there are validations."""
        model.watched = dataloader_val is not None

    @torch.no_grad()
    def on_validation_step_end(
        self, model: Any, data_batch: Any, output_batch: Any, loss_dict: Any, step: int = 0, iteration: int = 0, idx: int = 0
    ) -> None:
        """Judges the samples of the first set of FastGen's validation."""
        if model.validation is None or idx:
            return
        with torch.random.fork_rng():  # whoever samples after this gets FastGen's own random numbers
            samples = output_batch["gen_rand"]
            samples = samples() if callable(samples) else samples
        model.validation.add(model.bridge.media(samples), model.prompts_of(data_batch, len(samples)))

    def on_validation_end(self, model: Any, iteration: int = 0, idx: int = 0) -> None:
        """Metrics of the validation in FastGen's log, and in W&B if it runs."""
        if model.validation is None or idx:
            return
        metrics = model.validation.finish(iteration)
        log.info(
            "validation at iteration %d: %s", iteration, " ".join(f"{name}={value:.4f}" for name, value in metrics.items())
        )
        import wandb  # a requirement of FastGen

        if wandb.run is not None:
            wandb.log({f"val{idx}/{name}": value for name, value in metrics.items()}, step=iteration)

    def state_dict(self) -> dict[str, Any]:
        """State of the objective, the alarm, the memory of failures, the last metrics and plugins."""
        return state_of(self._model.bridge, self._model.validation, self._model.failures, self._model.tracked)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        restore(state_dict, self._model.bridge, self._model.validation, self._model.failures, self._model.tracked)


def launch(arguments: list[str]) -> None:
    """Runs FastGen's train.py in this process, with `AMDModel` as its model class, or with your own subclass of it.

    Args:
        arguments: command line of train.py.

    Raises:
        InputError: for a configuration of another method than DMD2.
    """
    import argparse

    scripts, trainer, distributed = (load(f"fastgen.{name}") for name in ("utils.scripts", "trainer", "utils.distributed"))
    sys.argv = ["train.py", *arguments]
    args = scripts.parse_args(argparse.ArgumentParser(prog="amd-plugin host fastgen --"))
    args.opts = args.opts or ["-"]
    if not any(word.startswith("model_class._target_=") for word in args.opts):
        _refuse_other_methods(args.config)
        args.opts.append(f"model_class._target_={__name__}.AMDModel")
    if not any("trainer.callbacks.amd" in word for word in args.opts):
        args.opts.append(f"+trainer.callbacks.amd._target_={__name__}.AMDStateCallback")
    config = scripts.setup(args)
    config.model_class.config = config.model
    model = load("fastgen.utils").instantiate(config.model_class)
    config.model_class.config = None
    trainer.Trainer(config).run(model)
    distributed.clean_up()


def _refuse_other_methods(file: str) -> None:
    """Raises InputError for FastGen's configuration `file`, if its model is not `DMD2Model`, in whose place ours comes."""
    if not Path(file).is_file():
        raise InputError(f"--config: {file} is not a file here. FastGen takes a path from the folder of its checkout")
    target = load("fastgen.configs.config_utils").import_config_from_python_file(file).model_class._target_
    name = getattr(target, "__name__", str(target)).rpartition(".")[2]
    if name not in ("DMD2Model", "AMDModel"):
        raise InputError(f"{file}: model_class must be DMD2Model, which AMD is a form of, got {name}")
