"""The roles of a run: student, fake score and teacher of one backbone on their devices, with their optimizers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate import Accelerator

from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.training.learner import EngineLearner, Learner, RoleOptimizer
from amd_plugin.models.backbone import Backbone, misfit
from amd_plugin.models.ema import EMA
from amd_plugin.models.roles import Role, StartNetworks, make_roles
from amd_plugin.models.step_conditioning import conditions, in_outcomes
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.sharding.engine import EngineSettings


class Roles(NamedTuple):
    """The roles of a run.

    Attributes:
        student, fake_score, teacher: the roles.
        learners: the optimizers, by the name of the trained role.
        ema: the moving average of the student's weights.
        has_shares: whether each process holds a share of the trained weights, so that all processes save and load together.
        student_is_sharded: whether all processes have to call the student equally often.
    """

    student: Role
    fake_score: Role
    teacher: Role
    learners: dict[str, RoleOptimizer]
    ema: EMA
    has_shares: bool
    student_is_sharded: bool


def build_roles(
    recipe: Recipe,
    backbone: Backbone,
    plugins: PluginManager,
    accelerator: Accelerator,
    *,
    outcomes: bool | Literal["if offered"] = False,
) -> Roles:
    """Places the networks on their devices and gives the trained ones their optimizers.

    Args:
        recipe: the recipe.
        backbone: the model from which all roles start.
        plugins: the registry of families and hooks.
        accelerator: the run's processes and precision.
        outcomes: whether the fake score is conditioned on the outcome of each sample, see `amd_plugin.hookspecs.Needs`.

    Raises:
        InputError: for gradient checkpointing of a network that does not support it.
    """
    config, train = recipe.config, recipe.config.train
    model, stage = config.model, config.distributed.trained
    shared, base, read = model.roles == "shared_base", backbone.network, backbone.read
    placed = partial(
        plugins.hook.distill_prepare_frozen, role="teacher", accelerator=accelerator, options=recipe.as_dict(), read=read
    )
    # Adapters are added to a base that is on its device. Networks of their own are copied from one that is not yet.
    base = placed(module=base) if shared else base
    conditioned = conditions(model, backbone.family, outcomes=outcomes, warn=accelerator.is_main_process)
    loras = {role: read_layers() for role, read_layers in backbone.loras.items()}
    start = StartNetworks(base, backbone.student, read, conditioned, loras)
    roles = make_roles(model, start, train.seed, whole=stage != "zero3")
    if model.fake_score_from is not None:
        _start_fake_score(roles["fake_score"], Path(model.fake_score_from))
    if not shared:
        roles["teacher"] = Role(placed(module=base), frozen=True)
    for role in (roles["student"], roles["fake_score"]):
        if stage == "none":
            role.network.to(accelerator.device)
        if train.gradient_checkpointing:
            _enable_checkpointing(role.network)
    if train.compile:
        for network in {id(role.network): role.network for role in roles.values()}.values():
            network.compile()
    learners: dict[str, RoleOptimizer] = {}
    for name, rate in (("student", train.student_lr), ("fake_score", train.fake_lr)):
        if stage == "none":
            learners[name] = Learner(roles[name], rate, train, accelerator)
        else:
            learners[name] = EngineLearner(roles[name], rate, EngineSettings(accelerator, train, stage, read))
    sharded = stage != "none" or (shared and config.distributed.teacher != "none")
    ema = EMA(roles["student"], train.ema)
    return Roles(roles["student"], roles["fake_score"], roles["teacher"], learners, ema, stage != "none", sharded)


def _start_fake_score(role: Role, folder: Path) -> None:
    """Gives the fake score the weights that one has in a run's `folder`, or in one of its checkpoints.

    Either may have a table of outcomes that the other lacks: without its rows both are the same network.
    """
    try:
        if (checkpoints := folder / "checkpoints").is_dir():
            path = checkpoint.find(checkpoints)  # which reads all of it, as the next line does
        else:
            checkpoint.verify(path := folder)
        saved = checkpoint.load(path, lazy=True, needed=["fake_score"])[0]["fake_score"]
    except InputError as error:
        raise InputError(f"model.fake_score_from: {error}") from error
    own = role.state_dict()
    tables = {name: value for name, value in own.items() if in_outcomes(name)}
    state = tables | {name: value for name, value in saved.items() if name in own or not in_outcomes(name)}
    if shapes := misfit(state, own, "this run's fake score"):
        raise InputError(f"model.fake_score_from: {path} does not fit: {shapes}; model must be the same there")
    role.load_state_dict(state)


def _enable_checkpointing(network: Any) -> None:
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise InputError(f"train.gradient_checkpointing: a {type(network).__name__} does not support it. Set it to false")
    network.enable_gradient_checkpointing()
