"""The task of scenes: prompts of GenEval's six kinds, their pictures, and what the judges make of others' pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_plugin import metrics as measure
from amd_plugin.errors import InputError, OptionError
from amd_plugin.options import made, takes
from amd_plugin.randomness import generator
from amd_plugin.tasks.judge import Judge
from amd_plugin.tasks.scenes.detector import Detector
from amd_plugin.tasks.scenes.grammar import KINDS, prompts
from amd_plugin.tasks.scenes.judges import trained
from amd_plugin.tasks.scenes.options import SceneOptions
from amd_plugin.tasks.scenes.pictures import EDGE, Pictures
from amd_plugin.tasks.scenes.sprites import ATTRIBUTION, check_installed, other_drawings
from amd_plugin.tasks.scenes.verdict import Asked, Verdict, judge

# Of pixels in [-1, 1]; white is then 0.5, and most of a picture's numbers are small.
MEAN = 0.5
DRAWN = 8  # prompts of each kind in a drawing
CHECKED, RIGHT = 480, 0.95  # real scenes that a new judge is shown, and the share that it must find right

log = logging.getLogger(__name__)


class Scenes:
    """Pictures [3, 24, 24] of one to four emoji on white. A label is a place in the list of all prompts.

    Options: see `SceneOptions`.
    """

    name: ClassVar[str] = "scenes"
    metrics: ClassVar[dict[str, str]] = {
        "score": "up", **dict.fromkeys(KINDS, "up"), "soft": "up", "blended": "down", "gap": "down", "frechet": "down",
        "precision": "up", "recall": "up", "diversity": "one",
    }  # fmt: skip
    in_pixels: ClassVar[bool] = False
    media_channels: ClassVar[int] = 3
    credits: ClassVar[str] = ATTRIBUTION
    has_samples = True
    seed = 0

    @takes(SceneOptions)
    def __init__(self, **options: Any) -> None:
        chosen = made(SceneOptions, options)
        self._options = chosen
        self._prompts = prompts(chosen.objects, chosen.colours, chosen.counts)
        self._labels = {prompt.text: label for label, prompt in enumerate(self._prompts)}
        self.pictures = Pictures(self._prompts, chosen.objects, chosen.colours, (10, 12), 2)
        self.num_classes = len(self._prompts)
        self.fewest_samples = len(KINDS) * chosen.per_prompt
        self.sample_shape: tuple[int, ...] = (3, EDGE, EDGE)
        kinds = torch.tensor([prompt.kind for prompt in self._prompts])
        self._kinds = [(kinds == kind).nonzero()[:, 0] for kind in range(len(KINDS))]

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What pictures and teachers depend on beside code; names drawings that the weights in the package were not made of."""
        chosen = self._options
        lists = {"objects": list(chosen.objects), "colours": list(chosen.colours), "counts": list(chosen.counts)}
        return {"task": self.name, **lists, **other_drawings()}

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, 24, 24] of random prompts with their labels [B]. Nothing in them is wrong."""
        labels = self.draw_labels(position, count, generator)
        return _to_samples(self.pictures(labels, generator)), labels

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The same."""
        return self.training_data(count, generator)

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Each kind equally often, and then each of its prompts."""
        kind = torch.randint(len(KINDS), (count,), generator=generator, device=generator.device)
        which = torch.rand(count, generator=generator, device=generator.device)
        chosen = [self._kinds[k][int(w * len(self._kinds[k]))] for k, w in zip(kind.tolist(), which.tolist(), strict=True)]
        return torch.stack(chosen).to(generator.device)

    def balanced_labels(self, count: int) -> Tensor:
        """`per_prompt` samples of each of the same random prompts, equally many of each kind, kind by kind.

        A kind with fewer prompts than that has more samples of each.
        """
        each = count // self.fewest_samples
        parts = []
        for kind, of_kind in enumerate(self._kinds):
            order = torch.randperm(len(of_kind), generator=generator(0, "scenes evaluation", kind))
            rounds = -(-each // len(order))
            parts.append(of_kind[order.repeat(rounds)[:each].sort().values])
        return torch.cat(parts).repeat_interleave(self._options.per_prompt)

    def shown_labels(self) -> Tensor:
        """Labels of prompts for people to look at: one of each kind, and two of those that models get wrong most visibly."""
        shown = []
        for kind, of_kind in zip(KINDS, self._kinds, strict=True):
            order = torch.randperm(len(of_kind), generator=generator(0, "scenes shown", kind))
            shown.append(of_kind[order[: 2 if kind in ("counting", "position") else 1]])
        return torch.cat(shown)

    def check_installed(self) -> None:
        """Raises MissingDependency without the drawings that evaluations and other teachers need."""
        check_installed()

    def prompts(self, labels: Tensor) -> list[str]:
        """The prompts of `labels` [B]."""
        return [self._prompts[label].text for label in labels.tolist()]

    def columns(self, labels: Tensor) -> dict[str, Any]:
        """``labels``."""
        return {"labels": labels}

    def asked_for(self, rows: int, evaluated: int) -> list[str]:
        """The prompts of an evaluation; those of training are embedded when they come, as there are thousands of them."""
        _ = self.pictures.bank  # a run without the drawings must fail before it trains, not at its first evaluation
        self.make_judges()
        return self.prompts(self.balanced_labels(evaluated).unique())

    def to_media(self, samples: Tensor) -> Tensor:
        """Pictures [B, 3, 24, 24] in [0, 1]."""
        return ((samples + MEAN) / 2 + 0.5).clamp(0, 1)

    def classifier(self) -> nn.Module:
        """Raises OptionError: the reward of scenes is called ``scenes``."""
        raise OptionError("name", "scenes have thousands of prompts and no classifier; their reward is called 'scenes'")

    def make_judges(self) -> None:
        """Trains the judges, which takes minutes, where they neither come with the package nor are in the cache."""
        _ = self._detectors

    def verdict(self, judge_name: str, media: Tensor, prompts: Sequence[str]) -> Verdict:
        """The verdict of judge ``a``, ``b`` or ``c`` on pictures [B, 3, 24, 24] in [0, 1] that were made for `prompts`.

        Raises:
            InputError: for a prompt that is not of the grammar.
        """
        for prompt in prompts:
            if prompt not in self._labels:
                example = self._prompts[-1].text
                raise InputError(
                    f"prompt {prompt!r}: the judges of scenes read prompts like {example!r} only, see docs/scenes.md"
                )
        labels = torch.tensor([self._labels[prompt] for prompt in prompts], device=media.device)
        return self._verdict(judge_name, media, labels)

    def judge(self) -> Judge:
        """Judge B, with the features of judge C."""
        return Judge(
            "means and maxima of a detector's last layer, which neither training nor the score has used",
            self._detector("c").features, lambda media, labels: self._verdict("b", media, labels).right.float(),
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """Held-out metrics: the verdict by judge B, distances in the features of judge C.

        score: mean of the six kinds' shares of right pictures, as in GenEval. soft: mean log probability of a right picture.
        blended: share of things that are none of the objects. gap: score by judge A, the reward's, minus `score`: what only the
        reward sees. frechet, precision, recall: against real pictures of the same prompts. diversity: mean pair distance within
        a prompt over that of real pictures.
        """
        verdict, reward = (self._verdict(name, media, labels) for name in ("b", "a"))
        by_kind, by_reward = (self._by_kind(v.right.float(), labels) for v in (verdict, reward))
        score = sum(by_kind.values()) / len(by_kind)
        real = self.pictures(labels, generator(0, "scenes evaluation", "real"))
        features = self._detector("c").features
        precision, recall = measure.precision_recall(features(real), features(media))
        pairs = [(labels == label) for label in labels.unique() if (labels == label).sum() > 1]
        # Real pictures of a prompt with few places may all be equal, and are then no measure.
        pairs = [rows for rows in pairs if (real[rows] != real[rows][:1]).any()]
        ratios = [measure.diversity_ratio(media[rows].flatten(1), real[rows].flatten(1)) for rows in pairs]
        return {
            "score": score,
            **by_kind,
            "soft": verdict.soft.mean().item(),
            "blended": verdict.blended.mean().item(),
            "gap": sum(by_reward.values()) / len(by_reward) - score,
            "frechet": measure.frechet_distance(features(real), features(media)),
            "precision": precision,
            "recall": recall,
            "diversity": sum(ratios) / max(len(ratios), 1),
        }

    def drawn_rows(self, labels: Tensor) -> Tensor:
        """The first sample of eight of the prompts of each kind."""
        return torch.cat(self._drawn_by_kind(labels))

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """Eight prompts of each kind, a row per kind; judge B frames what it finds right in green, the rest in red."""
        right = self._verdict("b", media, labels).right
        rows = [self._row(media, right, places) for places in self._drawn_by_kind(labels)]
        grid = torch.cat(rows, 1).permute(1, 2, 0)

        def draw(axes: Any, frame: int) -> None:
            axes.imshow(grid.numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[(index + 0.5) * len(grid) / len(KINDS) for index in range(len(KINDS))])
            axes.set_yticklabels(KINDS, fontsize=8)
            axes.tick_params(length=0)
            axes.set_xlabel(self.credits, fontsize=5)

        return draw

    def _drawn_by_kind(self, labels: Tensor) -> list[Tensor]:
        """Of each kind, the rows of `labels` with the first sample of `DRAWN` of its prompts, evenly chosen."""
        drawn = []
        for of_kind in self._kinds:
            rows = torch.isin(labels, of_kind).nonzero()[:, 0]
            is_first = [not (labels[rows[:index]] == labels[row]).any() for index, row in enumerate(rows)]
            firsts = rows[torch.tensor(is_first, dtype=torch.bool)]
            drawn.append(firsts[torch.arange(DRAWN) * len(firsts) // DRAWN] if len(firsts) > DRAWN else firsts)
        return drawn

    def _row(self, media: Tensor, right: Tensor, drawn: Tensor) -> Tensor:
        """Framed pictures [3, edge, DRAWN * edge] of the rows `drawn`."""
        frames = []
        for index in drawn.tolist():
            colour = torch.tensor((0.2, 0.65, 0.3) if right[index] else (0.85, 0.2, 0.2))
            framed = colour[:, None, None].expand(3, EDGE + 4, EDGE + 4).clone()
            framed[:, 1:-1, 1:-1] = 1
            framed[:, 2:-2, 2:-2] = media[index]
            frames.append(framed)
        blank = torch.ones(3, EDGE + 4, EDGE + 4)
        return torch.cat(frames + [blank] * (DRAWN - len(frames)), 2)

    def _by_kind(self, right: Tensor, labels: Tensor) -> dict[str, float]:
        rows = {name: torch.isin(labels, of_kind) for name, of_kind in zip(KINDS, self._kinds, strict=True)}
        return {name: right[members].mean().item() for name, members in rows.items() if members.any()}

    def _verdict(self, name: str, media: Tensor, labels: Tensor) -> Verdict:
        return judge(self._detector(name).to(media.device)(media.float()), self._asked(labels.to(media.device)))

    def _asked(self, labels: Tensor) -> Asked:
        """What the prompts of `labels` [B] ask for, on their device."""
        known, rows = self.pictures, labels.cpu()
        return Asked(*(part[rows].to(labels.device) for part in (known.count, known.object, known.colour, known.relation)))

    def _detector(self, name: str) -> Detector:
        return self._detectors[name]

    @cached_property
    def _detectors(self) -> dict[str, Detector]:
        seed = self.seed if self._options.judge_seed is None else self._options.judge_seed
        found = {}
        for name in ("a", "b", "c"):
            # Of C only features are used.
            check = None if name == "c" else partial(self._check, name)
            found[name] = trained(name, self._options.objects, self._options.colours, seed, check)
        return found

    @torch.no_grad()
    def _check(self, name: str, detector: Detector) -> None:
        """Warns of a new judge that finds too few of some hundred real scenes right."""
        labels = self.balanced_labels(max(CHECKED, self.fewest_samples))
        pictures = self.pictures(labels, generator(0, "scenes judge", name))
        right = judge(detector(pictures), self._asked(labels)).right.float().mean().item()
        if right < RIGHT:
            log.warning(
                "data: the new judge %s finds %.0f%% of %d real scenes right, and those of the package find 99%%. So its "
                "verdicts are in doubt. Take fewer objects or colours, or ones that look less alike",
                name.upper(), 100 * right, len(labels),
            )  # fmt: skip


def _to_samples(pictures: Tensor) -> Tensor:
    return pictures * 2 - 1 - MEAN
