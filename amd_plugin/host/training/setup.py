"""The parts of a training run, built from its recipe in the order in which they depend on each other."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from accelerate import Accelerator

from amd_plugin.contract import gradient_option, refuse_what_cannot_be_copied, refuse_what_is_missing
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import EVERYTHING, Needs, Objective
from amd_plugin.host.training.adversary import Adversary
from amd_plugin.host.training.batch import BatchSource
from amd_plugin.host.training.failure_memory import BatchFailures
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.noise_levels import NoiseLevelSampler
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.roles import Roles, build_roles
from amd_plugin.host.training.rollouts import Rollouts
from amd_plugin.host.training.scoring import Scoring
from amd_plugin.models.backbone import Backbone, load_backbone
from amd_plugin.models.family import Caller
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.schedule import Ladder, NoiseSchedule, floors
from amd_plugin.tasks import Task

log = logging.getLogger(__name__)

OFFERS = EVERYTHING  # the reference host offers every field of the contract


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a training run.

    Attributes:
        task: the data and metrics.
        objective: the losses.
        backbone: the model from which all roles start.
        scoring: the training rewards; None for an objective without rewards.
        memory: the memory of failures; None for an objective without one.
        roles: the networks and their optimizers.
        forward: the forward passes.
        rollouts: the samples from which turns start.
        adversary: the adversarial branch; None for an objective without one.
    """

    task: Task
    objective: Objective
    backbone: Backbone
    scoring: Scoring | None
    memory: BatchFailures | None
    roles: Roles
    forward: Forward
    rollouts: Rollouts
    adversary: Adversary | None


def set_up(recipe: Recipe, plugins: PluginManager, accelerator: Accelerator) -> Setup:
    """All parts of the run that `recipe` describes; trains what is missing, and embeds all prompts of the run.

    Raises:
        InputError: for a recipe that does not fit these processes, or names something that cannot be used.
    """
    config, train = recipe.config, recipe.config.train
    _check_batch_size(recipe, accelerator)
    task = recipe.task
    objective = recipe.take_objective(plugins)
    refuse_what_is_missing(objective, OFFERS)
    refuse_what_cannot_be_copied(objective)
    needs = objective.needs
    if train.group_size < needs.recommended_group_size:
        log.warning(
            "train.group_size: with fewer than %d samples per prompt, advantages are little more than signs; got %d",
            needs.recommended_group_size, train.group_size,
        )  # fmt: skip
    # Before the teacher, which may have to be trained: a reward that cannot be built is told at once.
    rewards = RewardSet(config.rewards, plugins, task, config.data, accelerator.device) if needs.reward else None
    try:
        if rewards is not None and needs.reward_gradient is True:
            rewards.check_gradients(f"objective.{gradient_option(objective)}")
        return _with_networks(recipe, plugins, accelerator, objective, rewards)
    except BaseException:
        if rewards is not None:
            rewards.close()
        raise


def _with_networks(
    recipe: Recipe, plugins: PluginManager, accelerator: Accelerator, objective: Objective, rewards: RewardSet | None
) -> Setup:  # fmt: skip
    config, train, task, needs = recipe.config, recipe.config.train, recipe.task, objective.needs
    sharded = config.distributed.teacher != "none"
    backbone = load_backbone(config.model, task, train.seed, plugins.families(), sharded=sharded)
    backbone.move_autoencoders(accelerator.device)
    scoring: Scoring | None = None
    if rewards is not None:
        scoring = Scoring(recipe, rewards, task, backbone, accelerator)
        objective.reward_unit = scoring.unit
        if needs.reward_gradient and not scoring.has_gradient:
            reason = rewards.without_gradient() or "train.aggregation normalises each reward by itself"
            log.info("objective.advantage_gradient: auto is 0 in this run, as %s", reason)
    memory = BatchFailures(needs.replay) if needs.replay else None
    schedule = NoiseSchedule(backbone.scheduler, backbone.shift)
    ladder = Ladder(backbone.scheduler, config.model.student_steps, accelerator.device)
    noise_levels = _noise_levels(recipe, plugins, needs, schedule, ladder)
    roles = build_roles(recipe, backbone, plugins, accelerator, outcomes=needs.fake_score_outcome)
    forward = Forward(
        roles=roles, backbone=backbone, task=task, objective=objective, caller=Caller(backbone.family, accelerator.autocast),
        schedule=schedule, ladder=ladder, noise_levels=noise_levels, from_data=train.rollout == "data",
    )  # fmt: skip
    real: RealSamples | None = None
    if needs.discriminator is not None or forward.from_data:
        part = train.batch_size // accelerator.num_processes // train.accumulation
        real = RealSamples(recipe, backbone, task, roles.teacher, part, accelerator.device)
    adversary: Adversary | None = None
    if needs.discriminator is not None and real is not None:
        adversary = Adversary(needs.discriminator, forward, real, train, accelerator)
        roles.learners["discriminator"] = adversary.learner
    source = BatchSource(train, task, backbone.sample_shape, len(ladder), accelerator.device)
    rollouts = Rollouts(source, forward, objective, scoring, real if forward.from_data else None, accelerator)
    # A discriminator sees one real sample per sample of the batch; a rollout from data starts from one per group.
    per_sample = adversary is not None and train.real == "data"
    prompts = source.batches_before(train.max_steps) * train.batch_size // train.group_size
    prompts = source.updates_before(train.max_steps) * train.batch_size if per_sample else prompts
    backbone.embed_prompts(task, prompts, config, accelerator)
    return Setup(
        task=task, objective=objective, backbone=backbone, scoring=scoring, memory=memory, roles=roles,
        forward=forward, rollouts=rollouts, adversary=adversary,
    )  # fmt: skip


def _check_batch_size(recipe: Recipe, accelerator: Accelerator) -> None:
    processes, accumulation = accelerator.num_processes, recipe.config.train.accumulation
    if recipe.config.train.batch_size % (processes * accumulation):
        raise InputError(
            f"train.batch_size: must be a multiple of processes x accumulation = {processes} x {accumulation}, "
            f"got {recipe.config.train.batch_size}"
        )


def _noise_levels(
    recipe: Recipe, plugins: PluginManager, needs: Needs, schedule: NoiseSchedule, ladder: Ladder
) -> NoiseLevelSampler:
    """The host's draw of noise levels and the samplers of all plugins."""
    train = recipe.config.train
    windows = {"train.sigma": train.sigma, "objective.match_sigma": needs.match_range}
    lowest = floors(schedule, ladder, windows) if train.sub_interval else [0.0] * len(ladder)
    samplers = plugins.hook.distill_sigma_sampler(options=recipe.as_dict())
    # pluggy returns results in reverse order of registration.
    return NoiseLevelSampler(train, lowest, samplers[::-1])
