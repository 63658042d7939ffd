"""Who plays: student, fake score and teacher of one backbone, each in its place, and those that learn with their learners."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn

from amd_plugin.errors import InputError
from amd_plugin.host.training.learner import EngineLearner, Learner
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.roles import EMA, Role, make_roles
from amd_plugin.models.step_conditioning import time_embeddings
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe


class Roles(NamedTuple):
    """The roles of a run.

    Attributes:
        student, fake_score, teacher: the roles.
        learners: optimizers and updates, by the name of what they train.
        average: of the student.
        has_shares: each process keeps a share of trained weights, so that all have to save and load them together.
        student_is_sharded: all processes have to call it equally often.
    """

    student: Role
    fake_score: Role
    teacher: Role
    learners: dict[str, Any]
    ema: EMA
    has_shares: bool
    student_is_sharded: bool


def build_roles(recipe: Recipe, backbone: Backbone, plugins: PluginManager, accelerator: Accelerator) -> Roles:
    """Places the networks and gives those that learn their optimizers.

    Raises:
        InputError: for gradient checkpointing of a network that does not support it.
    """
    config, train = recipe.config, recipe.config.train
    model, how = config.model, config.distributed.trained
    shared, base, read = model.roles == "shared_base", backbone.network, backbone.read
    placed = partial(
        plugins.hook.distill_prepare_frozen, role="teacher", accelerator=accelerator, options=recipe.as_dict(), read=read
    )
    # Adapters are added to a base that has its place already; networks of their own are copied from one that has none yet.
    base = placed(module=base) if shared else base
    told = time_embeddings(model, backbone.family, warn=accelerator.is_main_process)
    roles = make_roles(model, base, backbone.student, train.seed, read, told, whole=how != "zero3")
    if not shared:
        roles["teacher"] = Role(placed(module=base), frozen=True)
    for role in (roles["student"], roles["fake_score"]):
        if how == "none":
            role.network.to(accelerator.device)
        if train.gradient_checkpointing:
            _enable_checkpointing(role.network)
    if train.compile:
        for network in {id(role.network): role.network for role in roles.values()}.values():
            network.compile()
    make: Any = Learner if how == "none" else partial(EngineLearner, how=how, read=read)
    rates = {"student": train.student_lr, "fake_score": train.fake_lr}
    learners = {name: make(roles[name], name.replace("_", " "), rate, train, accelerator) for name, rate in rates.items()}
    sharded = how != "none" or (shared and config.distributed.teacher != "none")
    ema = EMA(roles["student"], train.ema)
    return Roles(roles["student"], roles["fake_score"], roles["teacher"], learners, ema, how != "none", sharded)


def _enable_checkpointing(network: nn.Module | Any) -> None:
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise InputError(f"train.gradient_checkpointing: a {type(network).__name__} does not support it. Set it to false")
    network.enable_gradient_checkpointing()
