"""The processes of a run: how they are set up, and what one of them decides for all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list

from amd_plugin import disk
from amd_plugin.errors import AmdPluginError, InputError, MissingDependency, RunError, in_words
from amd_plugin.host.running.trackers import check_trackers
from amd_plugin.launcher import launcher_number
from amd_plugin.recipe.loading import Recipe

Result = TypeVar("Result")

# Seconds at the end of a run of several processes. Gloo's threads need Python's lock to drop the tensors of the last collective
# call, and the end of the process group holds that lock while it waits for these threads. Runs hung there.
LETTING_GO = 0.2


def make_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """The accelerator of a run, as the recipe's distributed section and its trackers ask for.

    Args:
        recipe: the run's recipe.
        output: the run's folder, where trackers write.

    Raises:
        InputError: for a launcher's wrapper that would replace the recipe's sharding, or an unknown tracker.
        MissingDependency: for a tracker whose package is not installed.
        RunError: where accelerate has been set up otherwise in this process, or sees another number of processes.
    """
    distributed, trackers = recipe.config.distributed, recipe.config.train.trackers
    cpu = distributed.device == "cpu" or not torch.cuda.is_available()
    launched = launcher_number("WORLD_SIZE", 1)
    for name in ("RANK", "LOCAL_RANK"):  # which accelerate reads
        launcher_number(name, 0)
    _refuse_wrappers()
    check_trackers(trackers)
    group: dict[str, Any] = {"backend": "gloo"} if cpu else {}
    if distributed.timeout is not None:
        group["timeout"] = timedelta(seconds=distributed.timeout)
    handlers: list[Any] = [InitProcessGroupKwargs(**group)] if group and launched > 1 else []
    precision = distributed.mixed_precision
    try:
        accelerator = Accelerator(
            cpu=cpu, mixed_precision=precision, log_with=trackers or None, kwargs_handlers=handlers,
            project_config=ProjectConfiguration(str(output), str(output / "tensorboard")),
        )  # fmt: skip
    except ValueError as error:  # accelerate keeps the first settings of a process for all its life
        message = f"distributed.mixed_precision: accelerate refuses '{precision}': {error}"
        raise RunError(f"{message} Start runs with other settings in a process of their own") from error
    if accelerator.num_processes != launched:
        raise RunError(f"accelerate sees {accelerator.num_processes} processes where the launcher started {launched}")
    return accelerator


def end(accelerator: Accelerator) -> None:
    """Ends the trackers and the process group, once the group's threads have let go of the last tensors."""
    if accelerator.num_processes > 1:
        time.sleep(LETTING_GO)
    accelerator.end_training()


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """The result of `action` on the main process, broadcast to all. Call on every process.

    Raises:
        InputError, MissingDependency: on every process, where the main process raises one, so that all stop for one reason.
        RunError: likewise, where the main process raises one, or a disk does not take what it writes; and on the others, in
            place of whatever else the main process raises.
    """
    outcome: list[Any] = [None, None, None]
    cause, fault = None, None
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except AmdPluginError as error:
            kind = next((kind for kind in (InputError, MissingDependency) if isinstance(error, kind)), RunError)
            outcome[1:], cause = (kind, str(error)), error.__cause__
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if (refused := disk.refusal(error)) is None:
                outcome[1:], fault = (RunError, f"process 0: {in_words(error)}"), error
            else:
                outcome[1:], cause = (RunError, f"{disk.in_words(refused)}. {disk.remedy(refused)}, and start again"), error
    broadcast_object_list(outcome)  # in any case: the others wait for it
    if fault is not None:
        raise fault
    result, kind, message = outcome
    if kind is not None:
        raise kind(message) from cause
    return result  # type: ignore[no-any-return]  # broadcast as an untyped list


def _refuse_wrappers() -> None:
    for wrapper in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{wrapper}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch was told to use {wrapper}, which would wrap whatever is loaded. Launch without it; the "
                "recipe's distributed section says what is sharded"
            )
