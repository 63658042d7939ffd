"""Checks between keys of a recipe: sizes that must divide, a model that fits its data, rewards that an objective needs."""

from __future__ import annotations

import json
import re
from typing import Any

from amd_plugin.config import ModelConfig, RecipeConfig, RewardConfig
from amd_plugin.disk import at_home
from amd_plugin.errors import InputError, OptionError
from amd_plugin.hookspecs import Needs, Objective
from amd_plugin.models.embedded.shapes import check_network
from amd_plugin.options import Place
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.yaml_source import Source
from amd_plugin.tasks import TASKS, Task, task_of


def check_relations(
    config: RecipeConfig, plugins: PluginManager, options: dict[str, Any], source: Source
) -> tuple[Task, Objective] | None:
    """Adds every problem between keys of `config` to `source`, and builds the task and the objective.

    A pipeline on disk is checked. One on the hub is left to the run, so that recipes can be read offline.

    Args:
        config: configuration whose keys are each valid.
        plugins: manager in which objectives and families are looked up.
        options: options of the objective, defaults included.
        source: file of the recipe, which collects the problems.

    Returns:
        Task and objective; None if a problem prevents one of them from being built.
    """
    _check_sizes(config, source)
    _check_distributed(config, source)
    check_model(config, source)
    _check_held_out(config, source)
    if source.problems:
        return None
    try:
        task = task_of(config.data, config.train.seed)
        _check_task(config, task, plugins, source)
    except OptionError as error:
        section = "model" if error.option in type(config.model).model_fields else "data"
        source.problem((section, error.option), str(error).partition(": ")[2])
        return None
    except InputError as error:
        text = str(error)
        place: Place = ("model" if text.startswith("model.") else "data",)
        if named := re.match(r"((?:model|data)(?:\.\w+)+): ", text):  # what reads a file names its key
            place, text = tuple(named[1].split(".")), text[named.end() :]
        source.problem(place, text)
        return None
    objective = _make_objective(config, plugins, options, source)
    if objective is None:
        return None
    _check_noise_levels(options, objective.needs, source)
    _check_rewards(config, objective, source)
    _check_discriminator(config, objective.needs, task, source)
    _check_student(config, objective.needs, source)
    return task, objective


def _check_sizes(config: RecipeConfig, source: Source) -> None:
    train = config.train
    if train.batch_size % train.group_size:
        source.problem(("train", "group_size"), f"must divide train.batch_size {train.batch_size}, got {train.group_size}")
    if train.batch_size % train.accumulation:
        source.problem(("train", "accumulation"), f"must divide train.batch_size {train.batch_size}, got {train.accumulation}")
    if train.stop_on_hacking and (not train.evaluate_every or train.max_steps < 4 * train.evaluate_every):
        message = "needs at least four held-out evaluations; set train.evaluate_every to a quarter of max_steps or less"
        source.problem(("train", "stop_on_hacking"), f"{message}, got {train.evaluate_every}")
    if train.rollouts == "harvest" and train.rollout == "data":
        message = "shares rollouts from noise, and train.rollout: data starts at the exit step"
        source.problem(("train", "rollouts"), f"{message}; set fresh, got 'harvest'")
    if not 0 <= train.sigma[0] < train.sigma[1] <= 1:
        source.problem(("train", "sigma"), f"must be [low, high] with 0 <= low < high <= 1, got {list(train.sigma)}")
    if train.sub_interval and config.model.student_steps == 1:
        message = "is for students of several steps, and model.student_steps is 1; leave it out"
        source.problem(("train", "sub_interval"), f"{message}, got true")


def _check_distributed(config: RecipeConfig, source: Source) -> None:
    sharded = [key for key in ("teacher", "trained") if getattr(config.distributed, key) != "none"]
    if config.train.compile and sharded:
        message = "torch.compile cannot follow a sharded network; set distributed."
        source.problem(("train", "compile"), f"{message}{' and distributed.'.join(sharded)} to none")
    if "trained" in sharded:
        _check_engines(config, source)
    if "teacher" not in sharded:
        return
    if config.train.real == "teacher":
        message = "its samples are made by one process, and all have to call a sharded teacher; set distributed.teacher to none"
        source.problem(("train", "real"), f"{message}, got 'teacher'")


def _check_engines(config: RecipeConfig, source: Source) -> None:
    """Checks student and fake score as DeepSpeed engines."""
    got = f"got '{config.distributed.trained}'"
    if config.model.roles == "shared_base":
        message = "an engine needs a network of its own, and adapters on a shared base are small; set it to none"
        source.problem(("distributed", "trained"), f"{message}, distributed.teacher shards the base; {got}")


def _check_held_out(config: RecipeConfig, source: Source) -> None:
    """Checks that a run has a held-out metric, other than the rewards it is trained on."""
    evaluate = config.evaluate
    if not evaluate.held_out and not evaluate.rewards:
        metrics = ", ".join(TASKS[config.data.task].metrics) if config.data.task in TASKS else ""
        message = f"name at least one metric of the task ({metrics}), or a reward under evaluate.rewards; got none"
        source.problem(("evaluate", "held_out"), message)
    trained = {_identity(reward): index for index, reward in enumerate(config.rewards)}
    for index, reward in enumerate(evaluate.rewards):
        place = ("evaluate", "rewards", index)
        if (same := trained.get(_identity(reward))) is not None:
            message = f"'{reward.name}' is rewards.{same} with the same options; judging by what was trained on is circular"
            source.problem(place, f"{message}. Name another reward or another model")
        if config.data.task in TASKS and reward.name in TASKS[config.data.task].metrics:
            source.problem(place, f"'{reward.name}' is also the name of a metric of {config.data.task}; two would be one curve")


def _identity(reward: RewardConfig) -> str:
    """A text that is equal for rewards with equal scores: all options but weight and failure handling."""
    fields = set(type(reward).model_fields) - {"name"}
    return json.dumps(reward.model_dump(mode="json", exclude=fields), sort_keys=True)


# Options of a pipeline on disk or on the hub, and those of any pipeline, of which mlp and dit have none.
OF_A_PATH = ("revision", "variant", "pipeline", "pixels", "frames", "reward_pixels")
OF_A_PIPELINE = ("negative_prompt", "text_length", "decoder", "student_from")


def check_model(config: RecipeConfig, source: Source) -> None:
    """Adds every problem between the keys of the section ``model`` to `source`."""
    model = config.model
    if (model.path is None) == (model.network is None):
        got = "both" if model.path else "neither"
        source.problem(("model",), f"needs either path, a pipeline to distil, or network, one made here; got {got}")
    elif model.network is not None and model.teacher is None:
        source.problem(("model", "teacher"), "required for a network that is made here, but not given")
    in_shares = config.distributed.teacher != "none" or config.distributed.trained == "zero3"
    whole = "needs the whole network in one place; set distributed.teacher to none, and trained to none or zero2"
    for key in ("teacher_lora", "student_lora", "fake_score_lora"):
        if (lora := getattr(model, key)) is None:
            continue
        if model.path is None:
            source.problem(("model", key), f"is for a pipeline; needs model.path, got {lora.path!r}")
        elif in_shares:
            source.problem(("model", key), f"{whole}, or merge it into a pipeline of its own for model.path; got {lora.path!r}")
    if model.fake_score_from is not None and in_shares:
        source.problem(("model", "fake_score_from"), f"{whole}; got {model.fake_score_from!r}")
    if model.network is not None:
        for key in (*OF_A_PATH, *(OF_A_PIPELINE if model.network in ("mlp", "dit") else ())):
            if (value := getattr(model, key)) != ModelConfig.model_fields[key].default:
                written = list(value) if isinstance(value, tuple) else value
                message = f"is for a pipeline at model.path, and this network is made here; got {written!r}"
                source.problem(("model", key), message)
    if model.rung_conditioning and model.student_steps == 1:
        message = "tells the steps of a student apart, and model.student_steps is 1; leave it out"
        source.problem(("model", "rung_conditioning"), f"{message}, got true")
    if model.roles == "shared_base" and model.student_from is not None:
        message = "a shared base is student and teacher at once; set model.roles to separate"
        source.problem(("model", "student_from"), f"{message}, got {model.student_from!r}")


def _check_task(config: RecipeConfig, task: Task, plugins: PluginManager, source: Source) -> None:
    model = config.model
    if model.path is not None:
        if at_home(model.path).is_dir():
            # What reads pipelines takes seconds to import.
            from amd_plugin.models.backbone import check_backbone
            from amd_plugin.models.step_conditioning import conditions

            conditions(model, check_backbone(model, plugins.families())[0])
    elif not task.num_classes:
        message = f"task {config.data.task} is for a pipeline of your own; name it as model.path, got network {model.network!r}"
        source.problem(("data", "task"), message)
    else:
        check_network(model, task)
    fewest = getattr(task, "fewest_samples", None)
    if config.evaluate.samples < (fewest or 5 * task.num_classes):
        least = f"five per class, {5 * task.num_classes}" if fewest is None else f"one prompt of each kind, {fewest}"
        source.problem(("evaluate", "samples"), f"must be at least {least}, got {config.evaluate.samples}")


def _make_objective(
    config: RecipeConfig, plugins: PluginManager, options: dict[str, Any], source: Source
) -> Objective | None:  # fmt: skip
    try:
        return plugins.make_objective(config.objective.name, options)
    except OptionError as error:
        source.problem(("objective", error.option), str(error).partition(": ")[2])
    except InputError as error:
        source.problem(("objective",), str(error))
    return None


def _check_noise_levels(options: dict[str, Any], needs: Needs, source: Source) -> None:
    """Checks that windows of noise levels are fractions of the schedule, as in the reference host."""
    windows = {option: options.get(option) for option in ("guidance_window", "sharpening_sigma")}
    windows |= {"match_sigma": needs.match_range, "guidance_sigma": needs.guidance_range}
    for option, window in windows.items():
        if isinstance(window, tuple | list) and not 0 <= window[0] < window[1] <= 1:
            message = f"must be fractions of the schedule, [low, high] with 0 <= low < high <= 1, got {list(window)}"
            source.problem(("objective", option) if option in options else ("objective", "name"), message)


def _check_rewards(config: RecipeConfig, objective: Objective, source: Source) -> None:
    name, needs = config.objective.name, objective.needs
    if needs.reward and not config.rewards:
        source.problem(("objective", "name"), f"objective '{name}' needs at least one entry under rewards, got none")
    elif needs.reward and not any(reward.weight for reward in config.rewards):
        source.problem(("rewards", 0, "weight"), f"objective '{name}' needs a reward that counts, got no weight but 0")
    if needs.reward_gradient is True and config.train.aggregation != "sum_then_normalize":
        # Its means and spreads change with the samples, and a gradient would have to pass through them.
        message = "the gradient that the objective follows is that of the rewards' weighted sum, in their own units"
        source.problem(("train", "aggregation"), f"{message}; set sum_then_normalize, got '{config.train.aggregation}'")
    if config.train.group_size < needs.group_size:
        message = f"with these options objective '{name}' compares the samples of a prompt and needs at least"
        source.problem(("train", "group_size"), f"{message} {needs.group_size}, got {config.train.group_size}")


def _check_student(config: RecipeConfig, needs: Needs, source: Source) -> None:
    """Checks that the student has the steps and the transitions that an objective needs."""
    name, model = config.objective.name, config.model
    if model.student_steps < needs.student_steps:
        message = f"with these options objective '{name}' needs at least {needs.student_steps}"
        source.problem(("model", "student_steps"), f"{message}, got {model.student_steps}")
    if needs.transition_density and model.transition != "sde":
        message = f"objective '{name}' needs transitions with a density, which are those of sde"
        source.problem(("model", "transition"), f"{message}, got {model.transition}")
    if needs.transition_density and config.train.rollout == "data":
        message = f"objective '{name}' needs the student's own transitions, which there are none of from data; choose simulate"
        source.problem(("train", "rollout"), f"{message}, got data")
    if needs.fake_score_outcome and config.train.harvests(model.student_steps):
        if model.student_steps * config.train.rollout_sets == 1:
            message = "with one step and one set the fake score judges the very samples whose outcomes it has learned"
            source.problem(("train", "rollout_sets"), f"{message}; set 2, or train.rollouts: fresh, got 1")
    if needs.own_rollouts and config.train.rollouts == "harvest":
        message = f"objective '{name}' needs the whole rollout of the student's turn; choose fresh"
        source.problem(("train", "rollouts"), f"{message}, got harvest")


def _check_discriminator(config: RecipeConfig, needs: Needs, task: Task, source: Source) -> None:
    """Checks the recipe against the needs of an adversarial branch, and of a rollout from real samples."""
    name, train, adversarial = config.objective.name, config.train, needs.discriminator is not None
    if adversarial and config.distributed.trained != "none":
        message = f"objective '{name}' reads the fake score's features, which a DeepSpeed engine does not expose"
        got = f"got '{config.distributed.trained}'"
        source.problem(("distributed", "trained"), f"{message}; set distributed.trained to none, {got}")
    if (adversarial or train.rollout == "data") and train.real == "data" and not task.has_samples:
        owner = f"objective '{name}'" if adversarial else "rollout 'data'"
        message = f"{owner} needs real samples; name data.image_column, or take the teacher's own with 'teacher'"
        source.problem(("train", "real"), f"{message}, got 'data'")
    if adversarial and train.gradient_checkpointing and config.model.roles == "shared_base":
        message = "cannot tell roles of a shared base apart within one loss, as adversarial objectives need; set it to false"
        source.problem(("train", "gradient_checkpointing"), f"{message}, got true")
