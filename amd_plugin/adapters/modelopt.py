"""AMD in NVIDIA ModelOpt (`modelopt.torch.fastgen`): a `DMDPipeline` whose user changes one constructor.

The host's own code draws, rolls out, calls the networks, and computes the adversarial term; the adapter watches the
predictions pass by `_predict_x0` and replaces the matching loss made of them. Where there is nothing to steer by (strength
and sharpening 0, or no reward) it is the host's own code and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from amd_plugin.adapters.bridge import OFFERS as SHARED_OFFERS
from amd_plugin.adapters.bridge import HostBridge, adaptive_objective, make_reward, require_fit
from amd_plugin.adapters.compatibility import Host
from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager, get_plugin_manager

HOST = Host("nvidia-modelopt", "0.45", "0.48", "nvidia-modelopt>=0.45")
OFFERS = SHARED_OFFERS | {"noise_level"}

fastgen = HOST.load("modelopt.torch.fastgen")
dmd = HOST.load("modelopt.torch.fastgen.methods.dmd")
DMDPipeline = fastgen.DMDPipeline

_MODEL_CALL = "self, model, hidden_states, timestep, encoder_hidden_states"
_TURN = "self, latents, noise, encoder_hidden_states"
_NEGATIVE = "negative_encoder_hidden_states, negative_encoder_hidden_states_mask, guidance_scale"
HOST.check(
    DMDPipeline,
    {
        "__init__": "self, student, teacher, fake_score, config, discriminator",
        "_call_model": f"{_MODEL_CALL}, model_kwargs",
        "_predict_x0": f"{_MODEL_CALL}, native_pred_type, model_kwargs",
        "_convert_pred": "self, raw, x_t, t, from_pred_type, to_pred_type",
        "_build_student_input": f"{_TURN}, model_kwargs",
        "sample_timesteps": "self, n, device, dtype",
        "compute_student_loss": f"{_TURN}, {_NEGATIVE}, model_kwargs",
        "compute_fake_score_loss": f"{_TURN}, model_kwargs",
    },
)
HOST.check(
    dmd,
    {
        "dsm_loss": "pred_type, net_pred, x0, eps, t, alpha_fn, sigma_fn",
        "add_noise": "x0, eps, t",
        "rf_alpha": "t",
        "rf_sigma": "t",
    },
)

TeacherSharding = Literal["none", "zero3", "zero3_offload"]


@dataclass
class _Turn:
    """What is known of the turn that is on.

    Attributes:
        role: ``student`` or ``fake_score``.
        condition, prompts: the user's, [B].
        seen: network, predicted x0 and timesteps of every prediction so far.
        judged: advantage and sharpening weight of the student's samples, once they are known.
    """

    role: str
    condition: Tensor | None
    prompts: Sequence[str] | None
    seen: list[tuple[nn.Module, Tensor, Tensor]]
    judged: tuple[Tensor, Tensor] | None = None


# Types see a mix-in over the host's pipeline; at run time `adaptive` puts it over any of the host's classes.
_Base = DMDPipeline if TYPE_CHECKING else object


class Adaptive(_Base):  # type: ignore[misc, valid-type]
    """What `AMDPipeline` adds to a pipeline of the host.

    Args:
        student, teacher, fake_score, config, discriminator: the host's. A DeepSpeed engine as teacher is taken by its module.
        strength, sharpening: of `amd_plugin.AMDObjective`.
        reward: called with (media, prompts), or a mapping with ``name`` and options; None leaves every advantage at 0.
        decode: makes media [B, C, (T,) H, W] in [0, 1] of latents; None scores the latents themselves.
        amd: further options of `AMDObjective`, e.g. ``{"side": "both"}``.
        objective: another objective instead, made by `get_plugin_manager().make_objective(...)` with the guidance scale of
            `config`: its loss takes the place of the host's, with a reward or without. `strength`, `sharpening` and `amd` are
            then not looked at.
        accelerator: place the teacher by hook ``distill_prepare_frozen``; None leaves it where it is.
        sharding: what that hook is asked for: ``none``, ``zero3`` or ``zero3_offload``.
        plugins: whose rewards, noise levels, strength schedules and sharding are used; all that are installed, if None.
        max_steps: student updates in all, for strength schedules; 0 if unknown.
        host: further arguments of the host's class.

    Attributes:
        objective: what computes the losses.
        metrics: of the last student turn, 0-dim tensors.
        turns: how many of each role there were.

    Raises:
        InputError: for an option out of range, or an objective that asks for what the host does not do.
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
        **host: Any,
    ):
        scale = 1.0 if config.guidance_scale is None else config.guidance_scale
        options = {**(amd or {}), "strength": strength, "sharpening": sharpening}
        in_place = objective is not None
        if objective is None:
            objective = adaptive_objective(scale, options, OFFERS)
        else:
            require_fit(objective, scale, OFFERS)
        # A window of guidance changes the direction with a reward or without.
        self._in_place = in_place or objective.needs.noise_level
        plugins = plugins or get_plugin_manager()
        if sharding not in get_args(TeacherSharding) or (sharding != "none" and accelerator is None):
            what = f"must be one of {', '.join(get_args(TeacherSharding))}, and needs an accelerator"
            raise InputError(f"sharding: {what}, got {sharding!r} and accelerator {accelerator!r}")
        if accelerator is not None:
            placed = {"distributed": {"teacher": sharding}}
            place = plugins.hook.distill_prepare_frozen
            teacher = place(role="teacher", module=teacher, accelerator=accelerator, options=placed, read=None)
        super().__init__(student, _module(teacher), fake_score, config, discriminator=discriminator, **host)
        self.objective, self.metrics, self.turns = objective, dict[str, Tensor](), {"student": 0, "fake_score": 0}
        self.bridge = HostBridge(objective, make_reward(reward, plugins), decode, plugins=plugins, options=options)
        self._max_steps = max_steps
        self._turn: _Turn | None = None

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: what belongs into the user's checkpoint beside networks and optimizers."""
        return {"objective": self.objective.state_dict(), "turns": dict(self.turns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            InputError: for the state of something else.
        """
        if set(state) != {"objective", "turns"} or set(state["turns"]) != set(self.turns):
            raise InputError(f"state of AMDPipeline: must have the keys objective and turns, got {sorted(state)}")
        self.objective.load_state_dict(dict(state["objective"]))
        self.turns = {role: int(count) for role, count in state["turns"].items()}

    @contextmanager
    def _turn_of(self, role: str, condition: Tensor | None, prompts: Sequence[str] | None) -> Iterator[_Turn]:
        """Has the predictions of a turn noted, and its noise levels moved."""
        self.bridge.start_turn(self.turns["student"], self._max_steps, self.metrics)
        self._turn = _Turn(role, condition, prompts, [])
        try:
            yield self._turn
            self.turns[role] += 1
        finally:
            self._turn = None

    def _predict_x0(
        self, model: nn.Module, hidden_states: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        """The host's, and a note of what was predicted while a turn is on."""
        x0: Tensor = super()._predict_x0(model, hidden_states, timestep, *args, **kwargs)
        if self._turn is not None:
            self._turn.seen.append((model, x0, timestep))
        return x0

    def sample_timesteps(self, n: int, **kwargs: Any) -> Tensor:
        """The host's draw, which is a fraction of its noise schedule, and what plugins make of it."""
        t: Tensor = super().sample_timesteps(n, **kwargs)
        if self._turn is None or not self.bridge.moves_noise_levels:
            return t
        if self.bridge.uses_reward:
            self._judge(self._turn)
        return self.bridge.move_noise_levels(t, self._turn.role, self.turns[self._turn.role])

    def _judge(self, turn: _Turn) -> tuple[Tensor, Tensor]:
        """Advantage and sharpening weight [B] of the turn's student samples, which are scored once."""
        if turn.judged is None:
            x0 = next(x0 for model, x0, _ in reversed(turn.seen) if model is self.student)
            turn.judged = self.bridge(x0, group_ids(turn.condition, len(x0)), turn.prompts)
        return turn.judged

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
        """The host's losses, ``vsd`` by AMD's direction; samples with equal `encoder_hidden_states` are one group.

        Args:
            latents, noise, encoder_hidden_states, guidance_scale, kwargs: the host's.
            prompts: [B] for the reward, where it reads them.
        """
        with self._turn_of("student", encoder_hidden_states, prompts) as turn:
            losses: dict[str, Tensor] = super().compute_student_loss(
                latents, noise, encoder_hidden_states, guidance_scale=guidance_scale, **kwargs
            )
            if not (self.bridge.uses_reward or self._in_place):
                return losses
            scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
            signals = self._signals(turn.seen, guided=scale is not None)
            advantage, _ = self._judge(turn)
        self.objective.guidance_scale = 1.0 if scale is None else scale
        output = self.objective.student_loss(signals._replace(advantage=advantage, **self.bridge.signal_fields))
        self.metrics = output.metrics | self.bridge.metrics
        # Whatever else the host adds to its total stays in it; the gradient of its own matching loss cancels exactly.
        return {**losses, "vsd": output.loss, "total": losses["total"] - losses["vsd"] + output.loss}

    def _signals(self, seen: list[tuple[nn.Module, Tensor, Tensor]], guided: bool) -> Signals:
        """Signals from a turn's predictions, which end with student, fake score, teacher, and the teacher's negative branch."""
        expected = [self.student, self.fake_score, self.teacher] + [self.teacher] * guided
        last = seen[-len(expected) :]
        if len(last) != len(expected) or any(model is not role for (model, *_), role in zip(last, expected, strict=True)):
            names = [type(model).__name__ for model, *_ in seen]
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
        """The host's loss, each sample by its sharpening weight: failures are learnt harder."""
        with self._turn_of("fake_score", encoder_hidden_states, prompts) as turn:
            kwargs["encoder_hidden_states"] = encoder_hidden_states
            if not (self.bridge.uses_reward and self.objective.needs.fake_score_weight):
                return super().compute_fake_score_loss(latents, noise, **kwargs)  # type: ignore[no-any-return]
            x_s, t_s = self._build_student_input(latents, noise, **kwargs)
            with torch.no_grad():
                x0 = self._predict_x0(self.student, x_s, t_s, **kwargs)
                t = self.sample_timesteps(len(x0), device=latents.device, dtype=torch.float32)
                eps = torch.randn_like(latents)
                x_t = dmd.add_noise(x0, eps, t)
            _, weight = self._judge(turn)
            raw = self._call_model(self.fake_score, x_t, t, **kwargs)
        native, space = self.config.pred_type, self.config.fake_score_pred_type or self.config.pred_type
        prediction = self._convert_pred(raw, x_t, t, from_pred_type=native, to_pred_type=space)
        # The host's loss is a mean over the batch, so of one sample it is that sample's.
        each = [
            dmd.dsm_loss(space, p[None], x0=x[None], eps=e[None], t=s[None], alpha_fn=dmd.rf_alpha, sigma_fn=dmd.rf_sigma)
            for p, x, e, s in zip(prediction, x0, eps, t, strict=True)
        ]
        loss = (weight.to(each[0]) * torch.stack(each)).mean()
        return {"fake_score": loss, "total": loss}


def adaptive(pipeline_cls: type) -> type:
    """AMD over any of the host's pipelines, e.g. its `QwenImageDMDPipeline`; remembers it as ``host``."""
    return type(f"AMD{pipeline_cls.__name__}", (Adaptive, pipeline_cls), {"host": pipeline_cls, "__doc__": Adaptive.__doc__})


class AMDPipeline(Adaptive, DMDPipeline):  # type: ignore[misc, valid-type]
    """`DMDPipeline` with AMD; see `Adaptive` for its arguments."""

    host = DMDPipeline


def __getattr__(name: str) -> Any:
    if name == "AMDDiffusionRecipe":
        raise ImportError("AMDDiffusionRecipe is now in amd_plugin.adapters.modelopt_automodel. Import it from there")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _module(teacher: nn.Module) -> nn.Module:
    """The network inside a DeepSpeed engine, whose `eval()` returns None; hooks of ZeRO-3 live on the network's own parts."""
    deepspeed = sys.modules.get("deepspeed")
    inside: nn.Module = teacher.module if deepspeed is not None and isinstance(teacher, deepspeed.DeepSpeedEngine) else teacher
    return inside
