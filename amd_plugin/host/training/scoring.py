"""From samples to advantages: decode once, ask all rewards, join the processes, and decide about what failed.

Every decision is taken on numbers that all processes share, so that all of them stop, or none does: a lone exception would
leave the rest waiting. A reward that fails where its `on_error` is ``raise``, or on more than `train.max_failed_rewards` of the
samples of the last `train.failed_rewards_window` batches, ends the run; `amd_plugin.host.run` saves it first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.batch import Batch
from amd_plugin.maths.advantage import aggregate
from amd_plugin.maths.prediction import widen
from amd_plugin.metrics import correlation_within
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.family import Size
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.rewards.reward_set import Pending, RewardSet, Scores

log = logging.getLogger(__name__)

NOT_FINITE = "NaN, infinite or None"


class ScoringJob(NamedTuple):
    """A process's rows of a batch, handed to the rewards.

    Attributes:
        pending: what the rewards were asked.
        groups: the same number for rows of the same prompt, in all batches and processes; [b].
    """

    pending: Pending
    groups: Tensor


class GatheredScores(NamedTuple):
    """What the rewards said about the batches of all processes.

    Attributes:
        values: [B, K], NaN or infinite where a reward failed.
        groups: [B], see `ScoringJob`.
        failed: share of samples that each of the K rewards failed on.
        broke: whether the call itself failed somewhere, for each of the K rewards.
    """

    values: Tensor
    groups: Tensor
    failed: list[float]
    broke: list[bool]


class Scoring:
    """Advantages of student samples, with a memory of failures.

    Args:
        recipe: names the rewards and what to do when they fail.
        plugins: where rewards are looked up.
        backbone: decoder of the samples, and their size.
        accelerator: joins processes.

    Attributes:
        rewards: the recipe's.
        unit: of what the objective is given, see `amd_plugin.rewards.protocol.Traits`.

    Raises:
        InputError: for a reward that cannot be built, or a `model.reward_pixels` that latents cannot be shrunk to.
    """

    def __init__(
        self, recipe: Recipe, plugins: PluginManager, backbone: Backbone, accelerator: Accelerator,
    ):  # fmt: skip
        config, task = recipe.config, recipe.task
        self._train, self._task, self._backbone, self._accelerator = config.train, task, backbone, accelerator
        self._shrink_to = _shrunk_size(config.model.reward_pixels, backbone.size, backbone.sample_shape[-2:])
        self.rewards = RewardSet(config.rewards, plugins, task, config.data, accelerator.device)
        self._weights = torch.tensor([*self.rewards.weights.values()], device=accelerator.device)
        # Rewards that are normalised one by one have lost theirs.
        self.unit = self.rewards.unit if config.train.aggregation == "sum_then_normalize" else 0.0
        window = config.train.failed_rewards_window
        self._window: dict[str, deque[float]] = {name: deque(maxlen=window) for name in self.rewards.configs}
        self._causes: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        self._recent: list[GatheredScores] = []

    @torch.no_grad()
    def submit(self, batch: Batch, rows: slice, rollouts: Sequence[Tensor]) -> ScoringJob:
        """Decodes this process's rows of `batch` and hands them to the rewards."""
        labels = batch.labels[rows]
        media = torch.cat([self._backbone.decode(self._shrunk(rollout.detach())) for rollout in rollouts])
        prompts = self._task.prompts(labels)
        # A label may be a place in a stream of prompts, which is new each time; what is asked for is not.
        return ScoringJob(self.rewards.submit(media, prompts, self._task.columns(labels)), group_ids(prompts, len(labels)))

    def advantage(self, objective: Objective, batch: Batch, asked: ScoringJob) -> Tensor:
        """Advantages [B] of the joined batch, the same on every process.

        Raises:
            RunError: on every process, if a reward failed in a way that ends the run.
        """
        scores = self.rewards.collect(asked.pending)
        joined = self._join(scores, asked.groups)
        self._tell(joined, scores.causes)
        self._judge(joined, scores.causes)
        self._recent.append(joined)
        reward, groups = aggregate(joined.values, joined.groups, self._weights, self._train.aggregation)
        return objective.advantage(reward, groups, batch.exit_rung)

    def with_gradient(self, batch: Batch, rows: slice, x0: Tensor) -> Tensor:
        """Weighted sum of the rewards [b] of `x0` [b, ...], the samples of `rows`, with its gradient there.

        A sample that a reward failed on, in value or in gradient, gets NaN and no gradient. The graph of decoder and rewards is
        gone when this returns.
        """
        labels, free = batch.labels[rows], x0.detach().requires_grad_()
        media = self._backbone.decode(self._shrunk(free))
        reward = self.rewards.with_gradient(media, self._task.prompts(labels), self._task.columns(labels))
        answered, slope = torch.isfinite(reward), torch.zeros_like(free)
        if reward.requires_grad:
            [found] = torch.autograd.grad(torch.where(answered, reward, 0.0).sum(), free, allow_unused=True)
            slope = torch.full_like(free, torch.nan) if found is None else found
        answered &= slope.flatten(1).isfinite().all(1)
        if not answered.all():
            share = 1 - float(answered.float().mean())
            self._warn(
                "reward_gradient", "no gradient", f"on {share:.0%} of the samples of an update; see objective/failed_gradients"
            )
        # Masked here, since 0 times a gradient that is NaN is NaN.
        slope = torch.where(answered.reshape(-1, *[1] * (x0.dim() - 1)), slope, 0.0)
        moved = widen(slope * (x0 - x0.detach())).flatten(1).sum(1)
        return torch.where(answered, reward.detach(), torch.nan) + moved

    def metrics(self) -> dict[str, Tensor]:
        """Of the batches since the last call: every reward's mean in the last one, and the share it failed on in all."""
        metrics, last = {}, self._recent[-1].values
        finite = torch.isfinite(last)
        means = torch.where(finite, last, 0.0).sum(0) / finite.sum(0).clamp(min=1)
        for index, name in enumerate(self._window):
            shares = [joined.failed[index] for joined in self._recent]
            metrics[f"reward_failed/{name}"] = torch.tensor(sum(shares) / len(shares))
            if shares[-1] < 1:
                metrics[f"reward/{name}"] = means[index]
        self._recent.clear()
        return metrics

    def evaluate(self, media: Tensor, labels: Tensor, fits: Tensor | None = None) -> dict[str, float]:
        """Mean and spread over samples of what the training rewards say about an evaluation's `media`; on one process.

        With `fits` [B], whether a held-out judge finds each sample to be what was asked for, also ``sensor/NAME``: the
        correlation of the two within prompts. AMD assumes that a low reward marks a failure; this says whether it does.

        A reward that fails here is left out: no step depends on it.
        """
        size = max(1, self._train.batch_size // (self._accelerator.num_processes * self._train.accumulation))
        found: dict[str, list[Tensor]] = {}
        for part, asked in zip(media.split(size), labels.split(size), strict=True):
            part, asked = part.to(self._accelerator.device), asked.to(self._accelerator.device)
            scores = self.rewards(part, self._task.prompts(asked), **self._task.columns(asked))
            for name, values in scores.each.items():
                found.setdefault(name, []).append(values)
            for name, cause in scores.causes.items():
                self._warn(name, cause, "on samples of an evaluation, which are left out")
        row: dict[str, float] = {}
        for name, parts in found.items():
            everywhere = torch.cat(parts).cpu()
            answered = torch.isfinite(everywhere)
            if len(values := everywhere[answered]) > 1:
                row |= {f"evaluated_reward/{name}": values.mean().item(), f"evaluated_spread/{name}": values.std().item()}
                if fits is not None:
                    row[f"sensor/{name}"] = correlation_within(values, fits[answered], labels[answered])
        return row

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: shares of failed samples in the last batches, by reward."""
        return {name: list(shares) for name, shares in self._window.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Takes back what `state_dict` gave."""
        for name, shares in self._window.items():
            shares.clear()
            shares.extend(state.get(name, ()))

    def _shrunk(self, samples: Tensor) -> Tensor:
        """Latents [B, C, h, w] or [B, C, T, h, w] that decode to `model.reward_pixels`."""
        if self._shrink_to is None:
            return samples
        frames = samples.transpose(1, 2).flatten(0, 1) if samples.dim() == 5 else samples
        small = torch.nn.functional.interpolate(frames.float(), self._shrink_to, mode="bilinear", antialias=True)
        return small.unflatten(0, (len(samples), -1)).transpose(1, 2) if samples.dim() == 5 else small

    def _join(self, scores: Scores, groups: Tensor) -> GatheredScores:
        """One look at the device for everything that has to be decided."""
        device = self._accelerator.device
        values = self._accelerator.gather(torch.stack([*scores.each.values()], 1).to(device))
        broke = torch.tensor([[float(name in scores.causes) for name in scores.each]], device=device)
        broke = self._accelerator.gather(broke).amax(0)
        failed = (~torch.isfinite(values)).float().mean(0)
        looked_at = torch.stack((failed, broke)).tolist()
        groups = self._accelerator.gather(groups.to(device))
        return GatheredScores(values, groups, looked_at[0], [bool(flag) for flag in looked_at[1]])

    def _judge(self, joined: GatheredScores, causes: Mapping[str, str]) -> None:
        self._causes.update(causes)
        fatal = ""
        for (name, config), failed, broke in zip(self.rewards.configs.items(), joined.failed, joined.broke, strict=True):
            window, most = self._window[name], self._train.max_failed_rewards
            window.append(failed)
            share = sum(window) / len(window)
            if broke and config.on_error == "raise":
                advice = "Set on_error: neutral on that reward to give such batches advantage 0 instead"
                fatal = fatal or f"reward '{name}' failed: {self._all_causes(name)}\n{advice}"
            elif len(window) == window.maxlen and share > most:
                advice = "Mend the reward, or raise train.max_failed_rewards"
                what = f"reward '{name}' failed on {share:.0%} of the samples of the last {len(window)} batches"
                fatal = fatal or f"{what}, more than train.max_failed_rewards {most:g}: {self._all_causes(name)}\n{advice}"
        if fatal:
            raise RunError(fatal)

    def _all_causes(self, name: str) -> str:
        """Why `name` failed last on each process. Call on every process."""
        index = self._accelerator.process_index
        mine = self._causes.get(name, "")
        where = f"process {index}: " if self._accelerator.num_processes > 1 else ""
        found = gather_object([f"{where}{mine}" if mine else ""])
        return "; ".join(cause for cause in found if cause) or NOT_FINITE

    def _tell(self, joined: GatheredScores, causes: Mapping[str, str]) -> None:
        """Warns once about each kind of failure, where it happened."""
        for name, failed, broke in zip(self._window, joined.failed, joined.broke, strict=True):
            cause = causes.get(name, "")
            if not cause and failed and not broke and self._accelerator.is_main_process:
                cause = NOT_FINITE
            if cause:
                what = f"on {failed:.0%} of a batch's samples, which get advantage 0; counted as reward_failed/{name}"
                self._warn(name, cause, what)

    def _warn(self, name: str, cause: str, what: str) -> None:
        kind = (name, cause.partition(":")[0])
        if kind not in self._told:
            self._told.add(kind)
            log.warning("reward '%s': %s: %s; said once", name, cause, what)


def _shrunk_size(pixels: tuple[int, int] | None, size: Size | None, latents: tuple[int, ...]) -> tuple[int, int] | None:
    """[height, width] of latents that decode to `pixels`; `latents` [height, width] decode to `size`."""
    if pixels is None or size is None:
        return None
    per_latent = [whole // latent for whole, latent in zip(size[:2], latents, strict=True)]
    if any(p < k or p % k or p > whole for p, k, whole in zip(pixels, per_latent, size[:2], strict=True)):
        what = f"must be multiples of {per_latent} up to {list(size[:2])}, the size of samples, got {list(pixels)}"
        raise InputError(f"model.reward_pixels: {what}")
    return pixels[0] // per_latent[0], pixels[1] // per_latent[1]
