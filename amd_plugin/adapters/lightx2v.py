"""AMD in LightX2V's trainer (`lightx2v_train`): ``amd-plugin host lightx2v -- --config run.yaml``, the YAML unchanged.

Options stand under ``training.dmd.amd``: those of `AMDObjective`, and ``reward``, a name with options or a list of these.

    training:
      method: video_dmd
      dmd:
        amd: {sharpening: 1.0, reward: {name: clip, path: openai/clip-vit-large-patch14}}

The command puts the classes of this module into LightX2V's registry of trainers, under the host's own names, and runs its
train.py. LightX2V's own code draws noise, rolls out and calls the networks; the adapter records their predictions and replaces
the matching loss and the fake score's. Its tricks (`ida`, `div_loss`, `cdm`, `fake_real`) stay as they are.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.host_objective import adaptive_objective
from amd_plugin.adapters.lightx2v_host import (
    TRAINER_REGISTER,
    DmdTrainer,
    VideoArDmdTrainer,
    VideoDmdTrainer,
    VideoPhasedDmdTrainer,
    load_config,
)
from amd_plugin.adapters.lightx2v_trainer import Adaptive, AdaptiveVideo, AdaptiveWan, options_of
from amd_plugin.adapters.method_wrapping import wrapped
from amd_plugin.adapters.named_rewards import check_reward
from amd_plugin.adapters.offers import LIGHTX2V_PHASED
from amd_plugin.errors import InputError, in_words


class AMDDmdTrainer(Adaptive, DmdTrainer):  # type: ignore[misc]
    """LightX2V's `DmdTrainer`, for images, with AMD."""


class AMDVideoDmdTrainer(AdaptiveVideo, VideoDmdTrainer):  # type: ignore[misc]
    """LightX2V's `VideoDmdTrainer` with AMD."""


class AMDVideoArDmdTrainer(AdaptiveVideo, VideoArDmdTrainer):  # type: ignore[misc]
    """LightX2V's `VideoArDmdTrainer`, for causal students, with AMD."""

    def _no_rungs(self) -> str:
        mixed = "training.dmd.same_step_across_blocks is false, so that the parts of a sample have rungs of their own"
        return super()._no_rungs() if self.same_step_across_blocks else mixed

    def _sample_exit_indices(self, num_blocks: int, num_steps: int, device: Any) -> list[int]:
        indices: list[int] = super()._sample_exit_indices(num_blocks, num_steps, device)
        self._rung = int(indices[0]) if self.same_step_across_blocks else 0
        return indices


class AMDVideoPhasedDmdTrainer(AdaptiveWan, VideoPhasedDmdTrainer):  # type: ignore[misc]
    """LightX2V's `VideoPhasedDmdTrainer` with AMD. Complete samples are scored for the fake scores of both phases."""

    offers = LIGHTX2V_PHASED
    _complete: Tensor | None = None  # the samples of the running fake-score turn

    def _run_full_fake_rollout(self, *args: Any, **kwargs: Any) -> Any:
        rollout = super()._run_full_fake_rollout(*args, **kwargs)
        self._complete, self._rung = rollout[1], self.num_inference_steps - 1
        return rollout

    def _dmd_loss_for_region(self, anchor: Tensor, student_x0: Tensor, sigma_s: Tensor, conditions: Any, *which: str) -> Any:
        with self._started_turn("student", conditions[0], student_x0):
            return super()._dmd_loss_for_region(anchor, student_x0, sigma_s, conditions, *which)

    def _fake_loss_for_score_range(self, fake_model: Any, anchor: Tensor, sigma_s: Tensor, condition: Any, *raw: int) -> Any:
        with self._started_turn("fake_score", condition, self._complete) as turn:
            if turn is None:
                return super()._fake_loss_for_score_range(fake_model, anchor, sigma_s, condition, *raw)
            with wrapped(self, "_phased_velocity_target", turn.record_target):
                loss = super()._fake_loss_for_score_range(fake_model, anchor, sigma_s, condition, *raw)
            return self._weighted_loss(turn) if turn.replaces else loss

    def _sample_score_sigma_range(self, batch_size: int, raw_min: int, raw_max: int, device: Any, dtype: Any) -> Tensor:
        sigma: Tensor = super()._sample_score_sigma_range(batch_size, raw_min, raw_max, device, dtype)
        ends = torch.tensor([max(1, raw_min, self.score_timestep_min), min(raw_max - 1, self.score_timestep_max)])
        low, high = self._raw_timesteps_to_sigmas(ends, torch.float32).tolist()
        return self._moved(sigma, low, high)

    def _after_student_optimizer_step(self, role: str) -> None:
        super()._after_student_optimizer_step(role)
        # This trainer of LightX2V sends nothing to its tracker.
        if self.student_updates % self.train_log_every_iters == 0 and self.amd_metrics():
            self.log_metrics({}, step=self.student_updates)


FORMS = {
    "dmd": AMDDmdTrainer,
    "video_dmd": AMDVideoDmdTrainer,
    "video_ar_dmd": AMDVideoArDmdTrainer,
    "video_phased_dmd": AMDVideoPhasedDmdTrainer,
}


def launch(arguments: list[str]) -> None:
    """Runs LightX2V's train.py in this process, with AMD's form of each trainer under the host's name for it.

    Args:
        arguments: command line of train.py.

    Raises:
        InputError: for a method without a form here, or an option that is unknown or out of range; before any model is loaded.
    """
    import argparse

    parser = argparse.ArgumentParser(prog="amd-plugin host lightx2v --")
    parser.add_argument("--config", required=True)
    file = parser.parse_args(arguments).config
    if not Path(file).is_file():
        raise InputError(f"--config: {file} is not a file")
    try:
        config = load_config(file)
    except Exception as error:
        raise InputError(f"{file}: LightX2V cannot read it: {in_words(error)}") from error
    training = config.get("training")
    method = training.get("method") if isinstance(training, Mapping) else None
    if method not in FORMS:
        raise InputError(f"{file}: training.method must be one of {', '.join(FORMS)}, got {method!r}")
    options, own = options_of(config)
    adaptive_objective(1.0, options, FORMS[method].offers)
    check_reward(own.reward)
    check_reward(own.held_out, where="held_out")
    TRAINER_REGISTER.update(FORMS)
    spec = importlib.util.find_spec("lightx2v_train")
    [package] = list(spec.submodule_search_locations or []) if spec else [""]
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(Path(package).parent / "train.py"), run_name="__main__")
