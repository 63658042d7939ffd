"""AMD in FastVideo's trainer (`fastvideo.train`): `AMDMethod` and `AMDSelfForcingMethod`, named by ``method._target_``.

    method:
      _target_: amd_plugin.adapters.fastvideo.AMDMethod
      amd: {sharpening: 1.0, reward: {name: clip, path: openai/clip-vit-large-patch14}}

FastVideo's own code draws noise, rolls out and calls the networks. The adapter records their predictions and replaces
FastVideo's losses by AMD's. Without a reward, or with strength and sharpening 0, FastVideo's own code runs unchanged.
``amd.fast_rollout: true`` saves a third of the forwards: one exit rung for all ranks, one rollout for student and critic, one
teacher call for both branches of guidance. ``amd.rollouts: harvest`` rolls out once for all turns of a cycle.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader

from amd_plugin.adapters.fastvideo_host import Callback, DMD2Method, SelfForcingMethod, ValidationCallback, checkpoints
from amd_plugin.adapters.fastvideo_method import Adaptive
from amd_plugin.adapters.method_wrapping import wrapped
from amd_plugin.adapters.run_state import restore, state_of
from amd_plugin.errors import InputError, in_words

log = logging.getLogger(__name__)


class AMDMethod(Adaptive, DMD2Method):  # type: ignore[misc]
    """FastVideo's `DMD2Method` with AMD; see `Adaptive` for its options."""


class AMDSelfForcingMethod(Adaptive, SelfForcingMethod):  # type: ignore[misc]
    """FastVideo's `SelfForcingMethod` with AMD; see `Adaptive` for its options."""

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]):
        super().__init__(cfg=cfg, role_models=role_models)
        if self._own.rung_conditioning and not self._same_step_across_blocks:
            message = "needs method.same_step_across_blocks, without which the parts of a sample have rungs of their own"
            raise InputError(f"method.amd.rung_conditioning: {message}")

    def _sample_exit_indices(self, **parts: Any) -> list[int]:
        indices: list[int] = super()._sample_exit_indices(**parts)
        self._exit = indices[0] if self._same_step_across_blocks and indices else None  # rank 0 draws for all
        return indices

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        x0 = super()._student_rollout(batch, with_grad=with_grad)
        self._rung, self._one_rung = self._exit or 0, self._exit is not None
        return x0


class AMDStateCallback(Callback):  # type: ignore[misc]
    """Puts AMD's running statistics into FastVideo's checkpoints; ``amd-plugin host fastvideo`` adds it by itself.

    callbacks:
      amd: {_target_: amd_plugin.adapters.fastvideo.AMDStateCallback}
    """

    def on_train_start(self, method: Any, iteration: int = 0) -> None:
        """Keeps the method for checkpoints, and watches FastVideo's validation if the method judges it."""
        self._method, self._starts_anew = method, _resumes_from_stock(method.training_config.checkpoint)
        callbacks = [] if method.validation is None else self._callback_dict._callbacks.values()
        for callback in callbacks:
            if isinstance(callback, ValidationCallback):
                # FastVideo has no hook between sampling and saving, and calls these attributes of the callback.
                callback._run_validation = functools.partial(self._start, callback._run_validation)
                callback._run_validation_for_steps = functools.partial(
                    self._watch, callback, callback._run_validation_for_steps
                )
                method.watched = True

    def on_validation_begin(self, method: Any, iteration: int = 0) -> None:
        """FastVideo's first call after it has loaded a checkpoint: those that it writes from now on hold AMD's state."""
        self._starts_anew = False

    def _start(self, run: Callable[..., Any], method: Any, step: int) -> None:
        self._iteration = step
        run(method, step)

    def _watch(self, callback: Any, run: Callable[..., Any], steps: int, *, transformer: Any) -> Any:
        """FastVideo's samples of one validation, whose metrics go to its tracker."""
        validation, pipeline = self._method.validation, callback._get_pipeline(transformer=transformer)

        def judged(forward: Callable[..., Any], batch: Any, *args: Any) -> Any:
            sampled = forward(batch, *args)
            validation.add(sampled.output.float(), [str(batch.prompt)] * len(sampled.output))
            return sampled

        with wrapped(pipeline, "forward", judged):
            result = run(steps, transformer=transformer)
        callback.tracker.log(validation.finish(self._iteration), self._iteration)
        return result

    def state_dict(self) -> dict[str, Any]:
        """State of the objective, the alarm, the memory of failures, the last metrics and plugins, as one JSON text."""
        # FastVideo restores exactly the keys that the state has at that moment, and the objective's keys change as it runs.
        if self._starts_anew:
            return {}
        method = self._method
        return {"objective": json.dumps(state_of(method.bridge, method.validation, method.failures, method.tracked))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; after a checkpoint of the stock trainer everything starts anew."""
        if self._starts_anew:
            log.warning("the checkpoint has no state of AMD: AMD's running statistics start anew")
            return
        method, state = self._method, json.loads(state_dict["objective"])
        restore(state, method.bridge, method.validation, method.failures, method.tracked)


def _resumes_from_stock(checkpoint: Any) -> bool:
    """Whether FastVideo will load a checkpoint that was written without `AMDStateCallback`."""
    if not checkpoint.resume_from_checkpoint:
        return False
    folder = checkpoints._resolve_resume_checkpoint(checkpoint.resume_from_checkpoint, output_dir=checkpoint.output_dir)
    if folder is None:
        return False
    keys = FileSystemReader(folder / "dcp").read_metadata().state_dict_metadata
    return not any(key.startswith("callbacks.") and key.endswith(".objective") for key in keys)


def launch(arguments: list[str]) -> None:
    """Runs FastVideo's trainer in this process, with AMD's form of the configured method and with `AMDStateCallback`.

    Args:
        arguments: command line of FastVideo's trainer.

    Raises:
        InputError: for a configuration that FastVideo cannot read, or a method without a form here; before any model is loaded.
    """
    import argparse

    from fastvideo.train.entrypoint.train import main

    parser = argparse.ArgumentParser(prog="amd-plugin host fastvideo --")
    parser.add_argument("--config", required=True)
    parser.add_argument("--dry-run", action="store_true")
    args, overrides = parser.parse_known_args(arguments)
    if not Path(args.config).is_file():
        raise InputError(f"--config: {args.config} is not a file")
    if not any(word.partition("=")[0] == "--method._target_" for word in overrides):
        from fastvideo.train.utils.config import load_run_config

        try:
            stock = str(load_run_config(args.config, overrides=overrides or None).method["_target_"])
        except Exception as error:
            raise InputError(f"{args.config}: FastVideo cannot read it: {in_words(error)}") from error
        forms = {"DMD2Method": "AMDMethod", "SelfForcingMethod": "AMDSelfForcingMethod"}
        name = stock.rpartition(".")[2]
        if name not in forms and name not in forms.values():
            raise InputError(f"{args.config}: method._target_ must be one of {', '.join(forms)}, got {stock}")
        overrides += ["--method._target_", f"{__name__}.{forms.get(name, name)}"]
    main(args, overrides=[*overrides, "--callbacks.amd._target_", f"{__name__}.AMDStateCallback"])
