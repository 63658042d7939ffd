"""AMD in NVIDIA FastGen: `AMDModel`, named by ``model_class._target_`` on the host's own command line, after its ``-``.

    model_class._target_=amd_plugin.adapters.fastgen.AMDModel '+model_class.amd={sharpening: 1.0, reward: {name: clip}}'

FastGen is on GitHub only; what PyPI calls fastgen is an unrelated package. The host's own code draws, calls the networks and
computes the adversarial terms; hooks note what the networks answer, and AMD's losses take the place of the host's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.adapters.bridge import HostBridge, adaptive_objective, make_reward
from amd_plugin.adapters.compatibility import Host
from amd_plugin.errors import InputError, MissingDependency, RunError
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

HOST = Host("fastgen", "0.1", "0.2", "git+https://github.com/NVlabs/FastGen")


def _load(module: str) -> Any:
    """A module of NVIDIA's FastGen; a checkout on the path has no version to ask for."""
    if importlib.util.find_spec("fastgen") is None:
        what = "fastgen: this adapter needs NVIDIA's FastGen, but it is not installed"
        raise MissingDependency(
            f"{what}. pip install '{HOST.source}'; do not install fastgen from PyPI, which is something else"
        )
    if importlib.util.find_spec("fastgen.methods") is None:
        where = importlib.util.find_spec("fastgen")
        what = f"fastgen: {where.origin if where else '?'} is the unrelated package of that name on PyPI, not NVIDIA's FastGen"
        raise MissingDependency(f"{what}. pip uninstall fastgen, then pip install '{HOST.source}'")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(f"fastgen: {module} does not import: {error}. See FastGen's requirements.txt") from error


DMD2Model = _load("fastgen.methods").DMD2Model
Callback = _load("fastgen.callbacks.callback").Callback
_losses = _load("fastgen.methods.common_loss")

_DRAWS = "self, input_student, t_student, t, eps"
HOST.check(
    DMD2Model,
    {
        "__init__": "self, config",
        "single_train_step": "self, data, iteration",
        "gen_data_from_net": "self, input_student, t_student, condition",
        "_compute_teacher_prediction_gan_loss": "self, perturbed_data, t, condition",
        "_student_update_step": f"{_DRAWS}, data, condition, neg_condition",
        "_fake_score_discriminator_update_step": f"{_DRAWS}, real_data, condition",
    },
)
HOST.check(_losses, {"denoising_score_matching_loss": "pred_type, net_pred, x0, eps, noise_scheduler, t"})


class AMDModel(DMD2Model):  # type: ignore[misc, valid-type]
    """FastGen's `DMD2Model` with AMD.

    Args:
        config: the host's.
        amd: options of `AMDObjective`, and ``reward``: a name with options, a list of these, or a callable.
        decode: makes media of samples; None asks the network's autoencoder, or scores samples as they are.

    Attributes:
        plugins: whose rewards, noise levels and strength schedules are used; a subclass may name others than those installed.
        max_iter: of the host's trainer, told by `AMDStateCallback`; 0 until then.

    Raises:
        InputError: for an option that is unknown or out of range.
    """

    plugins: PluginManager | None = None
    max_iter = 0

    def __init__(self, config: Any, amd: Mapping[str, Any] | None = None, decode: Callable[[Tensor], Tensor] | None = None):
        if amd is not None and not isinstance(amd, Mapping):
            raise InputError(f"model_class.amd: must be a mapping of options, got {amd!r}")
        options, plugins = _plain(amd or {}), self.plugins or get_plugin_manager()
        reward = make_reward(options.pop("reward", None), plugins)
        scale = 1.0 if config.guidance_scale is None else float(config.guidance_scale)
        objective = adaptive_objective(scale, options)
        super().__init__(config)
        self.objective = objective
        self.bridge = HostBridge(objective, reward, decode or self._decode, plugins=plugins, options=options)
        self._sample: Tensor | None = None  # what the host is to take for the student's, instead of asking it again
        self._turn, self._metrics = (0, 0), dict[str, Tensor]()
        self._prompts: list[str] | None = None

    def _decode(self, x0: Tensor) -> Tensor:
        """Media in [0, 1]."""
        vae = getattr(self.net, "vae", None)
        return x0 if vae is None else ((vae.decode(x0) + 1) / 2).clamp(0, 1)

    def single_train_step(self, data: dict[str, Any], iteration: int) -> Any:
        """The host's; in its validation, which is without gradients, nothing of AMD's happens."""
        self._turn = (iteration, self._turn[1] + 1 if self._turn[0] == iteration else 0)
        texts, every = data.get("condition_raw"), self.config.student_update_freq
        self._prompts = list(texts) if isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts) else None
        if torch.is_grad_enabled():
            self.bridge.start_turn(max(0, iteration - 1) // every, self.max_iter // every, self._metrics)
        return super().single_train_step(data, iteration)

    def gen_data_from_net(self, input_student: Tensor, t_student: Tensor, condition: Any = None) -> Tensor:
        """The host's, or what a turn of ours asked it for already."""
        sample, self._sample = self._sample, None
        if sample is None:
            sample = super().gen_data_from_net(input_student, t_student, condition=condition)
        return sample

    def _compute_teacher_prediction_gan_loss(self, perturbed_data: Tensor, t: Tensor, condition: Any = None) -> Any:
        # The host builds the teacher's graph even where nothing is sent back through it, and throws it away.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.gan_loss_weight_gen > 0):
            return super()._compute_teacher_prediction_gan_loss(perturbed_data, t, condition=condition)

    def _judged(self, x0: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        groups = group_ids(self._prompts, len(x0)) if self._prompts else _groups(condition, len(x0))
        return self.bridge(x0, groups, self._prompts)

    def _moved(self, t: Tensor, role: str) -> Tensor:
        """What plugins make of the host's draw of noise levels, whose largest is the end of its schedule."""
        end = self.net.noise_scheduler.max_t
        return self.bridge.move_noise_levels(t / end, role, *self._turn) * end

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
        if not (torch.is_grad_enabled() and (bridge.uses_reward or bridge.moves_noise_levels)):
            return turn(input_student, t_student, t, eps, data, condition=condition, neg_condition=neg_condition)
        x0 = self._sample = self.gen_data_from_net(input_student, t_student, condition=condition)
        advantage, _ = self._judged(x0, condition)
        t = self._moved(t, "student") if bridge.moves_noise_levels else t
        with _answers(self.fake_score) as fakes, _answers(self.teacher) as reals:
            losses, outputs = turn(input_student, t_student, t, eps, data, condition=condition, neg_condition=neg_condition)
        if not bridge.uses_reward:
            return losses, outputs
        guided = self.config.guidance_scale is not None
        if len(fakes) != 1 or len(reals) != 1 + guided:
            what = f"a student step makes {len(fakes)} fake-score and {len(reals)} teacher calls, not 1 and {1 + guided}"
            raise RunError(f"fastgen: {what}. Use a newer amd-plugin")
        sigma, uncond = t / self.net.noise_scheduler.max_t, reals[1] if guided else None
        output = self.objective.student_loss(Signals(x0, reals[0], uncond, fakes[0], sigma, advantage, **bridge.signal_fields))
        self._metrics = output.metrics
        metrics = {f"amd_{name}": value for name, value in (output.metrics | bridge.metrics).items()}
        total = losses["total_loss"] - losses["vsd_loss"] + output.loss
        return {**losses, **metrics, "vsd_loss": output.loss, "total_loss": total}, outputs

    def _fake_score_discriminator_update_step(
        self, input_student: Tensor, t_student: Tensor, t: Tensor, eps: Tensor, real_data: Tensor, condition: Any = None
    ) -> Any:  # fmt: skip
        turn, bridge = super()._fake_score_discriminator_update_step, self.bridge
        weighted = bridge.uses_reward and self.objective.needs.fake_score_weight
        if not (torch.is_grad_enabled() and (weighted or bridge.moves_noise_levels)):
            return turn(input_student, t_student, t, eps, real_data, condition=condition)
        with torch.no_grad():
            x0 = self._sample = self.gen_data_from_net(input_student, t_student, condition=condition)
        _, weight = self._judged(x0, condition)
        t = self._moved(t, "fake_score") if bridge.moves_noise_levels else t
        with _answers(self.fake_score) as fakes:
            losses, outputs = turn(input_student, t_student, t, eps, real_data, condition=condition)
        if not weighted:
            return losses, outputs
        if len(fakes) != 1:
            raise RunError(f"fastgen: a fake-score step makes {len(fakes)} fake-score calls, not 1. Use a newer amd-plugin")
        space = self.config.fake_score_pred_type or self.teacher.net_pred_type
        # The host's loss is a mean over the batch, so of one sample it is that sample's.
        each = [
            _losses.denoising_score_matching_loss(
                space, net_pred=p[None], x0=x[None], eps=e[None], noise_scheduler=self.net.noise_scheduler, t=s[None]
            )
            for p, x, e, s in zip(fakes[0], x0, eps, t, strict=True)
        ]
        loss = (weight.to(each[0]) * torch.stack(each)).mean()
        total = losses["total_loss"] - losses["fake_score_loss"] + loss
        return {**losses, "fake_score_loss": loss, "total_loss": total}, outputs


class AMDStateCallback(Callback):  # type: ignore[misc, valid-type]
    """Puts AMD's running statistics into the host's checkpoints; `amd-plugin host fastgen` adds it by itself.

    '+trainer.callbacks.amd={_target_: amd_plugin.adapters.fastgen.AMDStateCallback}'
    """

    def on_model_init_start(self, model: Any) -> None:
        """Remembers whose state it is, and tells it how long the run is."""
        self._model = model
        model.max_iter = int(self.config.trainer.max_iter)

    def state_dict(self) -> dict[str, Any]:
        """The objective's."""
        return dict(self._model.objective.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self._model.objective.load_state_dict(dict(state_dict))


@contextmanager
def _answers(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the predictions of `network`; with features beside them, the prediction comes first."""
    collected: list[Tensor] = []
    hook = network.register_forward_hook(
        lambda _, args, output: collected.append(output[0] if isinstance(output, list | tuple) else output)
    )
    try:
        yield collected
    finally:
        hook.remove()


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without OmegaConf's containers, which the host's command line makes; callables stay."""
    omegaconf = _load("omegaconf")
    if omegaconf.OmegaConf.is_config(options):
        return dict(omegaconf.OmegaConf.to_container(options, resolve=True))
    return dict(options)


def _groups(condition: Any, batch_size: int) -> Tensor:
    texts = condition.get("text_embeds") if isinstance(condition, Mapping) else condition
    return group_ids(texts[0] if isinstance(texts, list | tuple) else texts, batch_size)


def launch(arguments: list[str], objective: str) -> None:
    """Runs the host's train.py, in this process, with the model class set to ours.

    Raises:
        InputError: for another objective than ``amd``.
    """
    if objective != "amd":
        raise InputError(f"--objective: this adapter knows 'amd', got '{objective}'. The host's own needs no adapter")
    if "-" not in arguments:
        arguments = [*arguments, "-"]
    ours = [f"model_class._target_={__name__}.AMDModel", f"+trainer.callbacks.amd._target_={__name__}.AMDStateCallback"]
    sys.argv = ["train.py", *arguments, *ours]
    import argparse

    scripts, trainer = _load("fastgen.utils.scripts"), _load("fastgen.trainer")
    config = scripts.setup(scripts.parse_args(argparse.ArgumentParser(prog="amd-plugin host fastgen --")))
    config.model_class.config = config.model
    model = _load("fastgen.utils").instantiate(config.model_class)
    config.model_class.config = None
    trainer.Trainer(config).run(model)
