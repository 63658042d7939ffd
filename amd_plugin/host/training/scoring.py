"""The rewards of student samples: decode once, submit to all rewards, all-gather over processes, aggregate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.failure_policy import FailurePolicy
from amd_plugin.maths.advantage import aggregate
from amd_plugin.metrics import correlation_within
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.family import Size
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.recipe.loading import Recipe
from amd_plugin.rewards.gradient import linearised
from amd_plugin.rewards.reward_set import PendingScores, RewardSet, Scores
from amd_plugin.tasks import Task


class ScoringJob(NamedTuple):
    """A process's rows of a batch, submitted to the rewards.

    Attributes:
        pending: the scores to be collected.
        groups: the prompt ids [b]; equal prompts have equal ids in all batches and processes.
    """

    pending: PendingScores
    groups: Tensor


class GatheredScores(NamedTuple):
    """The scores of the joined batch.

    Attributes:
        values: the scores [B, K] of K rewards, NaN or infinite where a reward failed. All tensors are on the CPU.
        groups: the prompt ids [B], as in `ScoringJob`.
        failed: the share of samples that each reward failed on.
        broke: whether the call itself failed on some process, for each reward.
    """

    values: Tensor
    groups: Tensor
    failed: list[float]
    broke: list[bool]


class Scoring:
    """The training rewards of a run.

    Args:
        recipe: the recipe that names the rewards.
        rewards: the recipe's rewards, built.
        task: the task, with prompts and columns.
        backbone: the model that decodes, with the size of its latents and of decoded samples.
        accelerator: the run's processes.

    Attributes:
        rewards: the recipe's rewards.
        unit: the significant difference of summed rewards, see `amd_plugin.rewards.protocol.Traits`; 0 if unknown.
        has_gradient: whether the weighted sum of the rewards is differentiable.
        failures: the consequences of failed rewards.

    Raises:
        InputError: for a `model.reward_pixels` that latents cannot be shrunk to.
    """

    def __init__(self, recipe: Recipe, rewards: RewardSet, task: Task, backbone: Backbone, accelerator: Accelerator):
        config = recipe.config
        self._train, self._task, self._backbone, self._accelerator = config.train, task, backbone, accelerator
        self._latent_size = _latent_size(config.model.reward_pixels, backbone.size, backbone.sample_shape[-2:])
        self.rewards = rewards
        self._weights = torch.tensor([*self.rewards.weights.values()])
        # Rewards that are normalised one by one have lost their units.
        self.unit = self.rewards.unit if config.train.aggregation == "sum_then_normalize" else 0.0
        self.failures = FailurePolicy(self.rewards.configs, config.train, accelerator)
        self.has_gradient = config.train.aggregation == "sum_then_normalize" and not rewards.without_gradient()
        self._recent: list[GatheredScores] = []
        self._scored = 0

    @torch.no_grad()
    def submit(self, batch: Batch, rows: slice, samples: Sequence[Tensor]) -> ScoringJob:
        """Decodes this process's `rows` of `batch` and submits them to the rewards.

        Args:
            batch: the joined batch.
            rows: this process's rows.
            samples: the samples of these rows, one tensor per micro-batch.
        """
        labels = batch.labels[rows]
        media = torch.cat([self._backbone.decode(self._shrunk(part.detach())) for part in samples])
        prompts = self._task.prompts(labels)
        # A label may be a position in a stream of prompts, and differ for equal prompts.
        return ScoringJob(self.rewards.submit(media, prompts, self._task.columns(labels)), group_ids(prompts, len(labels)))

    def collect(self, job: ScoringJob) -> tuple[Tensor, Tensor]:
        """(reward [B], groups [B]) of the joined batch, on the CPU, the same on every process.

        Raises:
            RunError: on every process, for a failed reward that ends the run.
        """
        scores = self.rewards.collect(job.pending)
        gathered = all_gather_scores(scores, job.groups, self._accelerator)
        self.failures.judge(gathered.failed, gathered.broke, scores.causes)
        self._recent.append(gathered)
        self._scored += len(gathered.values)
        return aggregate(gathered.values, gathered.groups, self._weights, self._train.aggregation)

    def with_gradient(self, batch: Batch, rows: slice, x0: Tensor) -> Tensor:
        """The weighted sum of the rewards [b] of `x0` [b, ...], the samples of `rows`, with its gradient with respect to `x0`.

        A sample gets NaN and no gradient if a reward failed on it, in value or in gradient. The graph of decoder and rewards is
        freed on return.
        """
        labels = batch.labels[rows]
        prompts, columns = self._task.prompts(labels), self._task.columns(labels)
        self._scored += len(x0) * self._accelerator.num_processes
        reward = linearised(
            lambda samples: self.rewards.with_gradient(self._backbone.decode(self._shrunk(samples)), prompts, columns), x0
        )
        if (share := float((~torch.isfinite(reward)).float().mean())) > 0:
            affected = f"on {share:.0%} of the samples of an update; see objective/failed_gradients"
            self.failures.warn("reward_gradient", "no gradient", affected)
        return reward

    def metrics(self) -> dict[str, Tensor]:
        """Each reward's mean in the last batch; since the last call, the share of samples it failed on, and samples scored."""
        metrics, last = {"cost/scored_samples": torch.tensor(float(self._scored))}, self._recent[-1].values
        finite = torch.isfinite(last)
        means = torch.where(finite, last, 0.0).sum(0) / finite.sum(0).clamp(min=1)
        for index, name in enumerate(self.rewards.configs):
            shares = [gathered.failed[index] for gathered in self._recent]
            metrics[f"reward_failed/{name}"] = torch.tensor(sum(shares) / len(shares))
            if shares[-1] < 1:
                metrics[f"reward/{name}"] = means[index]
        self._recent.clear()
        self._scored = 0
        return metrics

    def evaluate(self, media: Tensor, labels: Tensor, fits: Tensor | None = None) -> dict[str, float]:
        """Mean and standard deviation of each training reward over an evaluation's `media`; on one process.

        A reward that fails on a sample is left out there, since no step depends on it.

        Args:
            media: the decoded samples [N, ...].
            labels: the labels [N].
            fits: whether a held-out judge finds that each sample shows its label, [N]. Adds ``sensor/NAME``, the correlation of
                the two within prompts. AMD assumes that a low reward marks a failure, and this measures whether it does.
        """
        size = max(1, self._train.batch_size // (self._accelerator.num_processes * self._train.accumulation))
        device = self._accelerator.device
        scored: dict[str, list[Tensor]] = {}
        for start in range(0, len(labels), size):
            part, part_labels = media[start : start + size].to(device), labels[start : start + size].to(device)
            scores = self.rewards(part, self._task.prompts(part_labels), **self._task.columns(part_labels))
            for name, values in scores.each.items():
                scored.setdefault(name, []).append(values)
            for name, cause in scores.causes.items():
                self.failures.warn(name, cause, "on samples of an evaluation, which are left out")
        row: dict[str, float] = {}
        for name, parts in scored.items():
            all_values = torch.cat(parts).cpu()
            finite = torch.isfinite(all_values)
            if len(values := all_values[finite]) > 1:
                row |= {f"evaluated_reward/{name}": values.mean().item(), f"evaluated_spread/{name}": values.std().item()}
                if fits is not None:
                    row[f"sensor/{name}"] = correlation_within(values, fits[finite], labels[finite])
        return row

    def state_dict(self) -> dict[str, list[float]]:
        """JSON-able: the shares of failed samples in the last batches, by reward."""
        return self.failures.state_dict()

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores the result of `state_dict`."""
        self.failures.load_state_dict(state)

    def _shrunk(self, samples: Tensor) -> Tensor:
        """Latents [B, C, h, w] or [B, C, T, h, w] that decode to `model.reward_pixels`."""
        if self._latent_size is None:
            return samples
        frames = samples.transpose(1, 2).flatten(0, 1) if samples.dim() == 5 else samples
        small = torch.nn.functional.interpolate(frames.float(), self._latent_size, mode="bilinear", antialias=True)
        return small.reshape(len(samples), -1, *small.shape[1:]).transpose(1, 2) if samples.dim() == 5 else small


def all_gather_scores(scores: Scores, groups: Tensor, accelerator: Accelerator) -> GatheredScores:
    """The scores and prompt ids [b] of all processes, by a single copy to the host."""
    device, rows = accelerator.device, len(groups)
    # A double holds a prompt's id exactly.
    values = torch.stack([*scores.each.values()], 1).to(device, torch.float64)
    broke = torch.tensor([[float(name in scores.causes) for name in scores.each] + [0.0]], dtype=torch.float64)
    own = torch.cat((values, groups.to(device, torch.float64, non_blocking=True)[:, None]), 1)
    everyone = accelerator.gather(torch.cat((own, broke.to(device, non_blocking=True)))).cpu().unflatten(0, (-1, rows + 1))
    values, groups = everyone[:, :-1, :-1].flatten(0, 1).float(), everyone[:, :-1, -1].flatten().long()
    failed, any_broke = (~torch.isfinite(values)).float().mean(0), everyone[:, -1, :-1].amax(0) > 0
    return GatheredScores(values, groups, failed.tolist(), any_broke.tolist())


def _latent_size(pixels: tuple[int, int] | None, size: Size | None, latents: tuple[int, ...]) -> tuple[int, int] | None:
    """[height, width] of latents that decode to `pixels`, where `latents` [height, width] decode to `size`."""
    if pixels is None or size is None:
        return None
    per_latent = [whole // latent for whole, latent in zip(size[:2], latents, strict=True)]
    if any(p < k or p % k or p > whole for p, k, whole in zip(pixels, per_latent, size[:2], strict=True)):
        message = f"must be multiples of {per_latent} up to {list(size[:2])}, the size of samples, got {list(pixels)}"
        raise InputError(f"model.reward_pixels: {message}")
    return pixels[0] // per_latent[0], pixels[1] // per_latent[1]
