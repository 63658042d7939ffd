"""Students of every objective against the best that a reward can buy: the frontier p exp(lambda r) / Z, in closed form.

    python benchmarks/frontier.py run                            # what is missing, then numbers and table; hours on two cores
    python benchmarks/frontier.py run --arms dmd,kl --seeds 2    # a part of it
    python benchmarks/frontier.py figure                         # frontier.svg, of the numbers in frontier.json
    python benchmarks/frontier.py figure --output docs/results --image docs/images/frontier.svg    # as it is in the docs

In the plane the density p of the teacher's data is known, wrong labels and outliers included. A student is one point: its
divergence from p and its mean reward, both from its samples in bins of a grid. To move samples within a bin costs no divergence
between bins, so it must gain no reward either: a sample has the reward that p has on average in its bin. Of these two numbers
the best pairs are known exactly. They are those of p exp(lambda r), r the reward of a bin, and no distribution has a higher
reward at the same divergence. The samples' own reward stands beside it, and has no such bound.

Two steps per student, so that every objective can take part; guidance 1, at which p is DMD's own target. Each seed has its own
teacher and its own reward, so its own frontier. All arms make equally many updates of equally many samples; how many of them a
reward scores differs, and is a column of the table. So do forwards: `policy_gradient` and `diffusion_nft` have further ones of
the student, `advantage_guidance` of the fake score, `dp_dmd` of the teacher.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib import pyplot
from rich.console import Console
from safetensors.torch import load_file
from scipy.optimize import brentq
from torch import Tensor

from amd_plugin.errors import RunError
from amd_plugin.evaluate.comparison.arms import Arm, parse_seeds
from amd_plugin.evaluate.comparison.jobs import Job, run_jobs, train_arm, worker_pool
from amd_plugin.evaluate.comparison.result import run_folder
from amd_plugin.host.running import run_log
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.recipe.loading import Recipe, load
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.tasks.modes2d import Modes2D
from amd_plugin.threads import one_thread

SETTINGS = ("model.student_steps=2", "objective.guidance_scale=1", "train.evaluate_every=0", "evaluate.samples=32000")
CELL, PARTS = 0.15, 5  # edge of a cell, and points of the grid along it
BLOCK, RARE = 4, 5e-4  # cells with less mass than this are counted in blocks of 4 x 4
LAMBDAS = (0.0, *(2.0**power for power in range(-4, 4)))  # rows of the table
DRAWN = (0.0, *(2.0 ** (power / 4) for power in range(-20, 41)))  # points of the figure's line, LAMBDAS among them
ENOUGH = 2.0**30  # lambda from which on the bins with the highest reward have all mass

# Objective, option, its values, further options: one curve each.
SHARPENING = ("objective.strength=0", "objective.tolerance=0")
CURVES: dict[str, tuple[str, str, tuple[float | str, ...], tuple[str, ...]]] = {
    "sharpening": ("amd", "sharpening", (0.5, 1.0, 2.0, 4.0), SHARPENING),
    "kl": ("amd", "kl", (0.05, 0.1, 0.2, 0.4), ("objective.strength=0", "objective.sharpening=1")),
    "advantage_guidance": ("amd", "advantage_guidance", (1.0, 2.0, 4.0, 8.0), (*SHARPENING, "objective.sharpening=0")),
    "advantage_guidance_auto": ("amd", "advantage_guidance", ("auto",), (*SHARPENING, "objective.sharpening=0")),
    "reward_gradient": ("dmd", "reward_gradient", (0.03, 0.1, 0.3, 1.0), ()),
    "policy_gradient": ("policy_gradient", "policy_weight", (0.03, 0.1, 0.3, 1.0), ()),
    "best_of_k": ("best_of_k", "best_of", (2.0, 4.0, 8.0), ()),
    "diffusion_nft": ("diffusion_nft", "nft_weight", (0.01, 0.03, 0.1), ()),
    "re_dmd": ("re_dmd", "reward_beta", (0.5, 1.0, 2.0), ()),
    "gndm": ("gndm", "reward_gradient", (0.0, 0.03, 0.1), ()),
    "dp_dmd": ("dp_dmd", "diversity_weight", (0.1, 1.0), ()),
}


class Point(NamedTuple):
    """A distribution in the plane.

    Attributes:
        nats: divergence from p, between bins of the grid, mean over classes.
        reward: mean reward, that of a sample being p's mean reward in its bin.
        below: difference between the frontier's reward at this divergence and `reward`.
        own_reward: mean reward of the samples themselves, which has no bound at this divergence between bins.
        precision: share of samples that the task's judge accepts.
        tv: total variation from the frontier's distribution of the same divergence, between bins, mean over classes.
    """

    nats: float
    reward: float
    below: float
    own_reward: float
    precision: float
    tv: float


class Plane:
    """The densities of a recipe's task on a grid, and its rewards.

    Args:
        recipe: recipe of one seed. Its teacher's data have the density p, and its rewards, summed as in training, are r.
        plugins: plugins that provide the rewards.

    Raises:
        RunError: for a reward that fails on the grid.
    """

    def __init__(self, recipe: Recipe, plugins: PluginManager):
        self.task: Modes2D = recipe.task
        self._rewards = RewardSet([reward.here for reward in recipe.config.rewards], plugins, self.task)
        self._fits = self.task.judge().fits
        self._cells = 2 * BLOCK * int(self.task.reach / CELL / BLOCK + 2)
        axis = (torch.arange(self._cells * PARTS) + 0.5) * CELL / PARTS - self._cells * CELL / 2
        self._points = torch.cartesian_prod(axis, axis)
        self._place = self._cell_of(self._points)
        classes = self.task.num_classes
        density = torch.stack([self._log_density(label).exp().double() for label in range(classes)])
        self._density = density / density.sum(1, keepdim=True)
        self._bins = self._binned()
        self._masses = self._in_bins(self._density)
        labels = torch.arange(classes).repeat_interleave(len(self._points))
        found = self._judged(self._points.repeat(classes, 1), labels)
        # p's means in each bin, [classes, bins].
        self._scores, self._accepted = (
            self._in_bins(self._density * values.reshape(density.shape)) / self._masses.clamp(min=1e-300) for values in found
        )

    def frontier(self, tilt: float) -> Point:
        """``p exp(tilt r) / Z``, exactly."""
        q = self._tilted_bins(tilt)
        reward, precision = (float((q * values).sum(1).mean()) for values in (self._scores, self._accepted))
        return Point(self._nats(q), reward, 0.0, reward, precision, 0.0)

    def _nats(self, masses: Tensor) -> float:
        """Divergence from p of masses [classes, bins], mean over classes."""
        return float(torch.special.xlogy(masses, masses / self._masses.clamp(min=1e-300)).sum(1).mean())

    def tilt_of(self, nats: float) -> float:
        """The lambda whose distribution has this divergence: 0 below it, `ENOUGH` beyond what a reward can tell apart."""
        high = 1.0
        while high < ENOUGH and self._nats(self._tilted_bins(high)) < nats:
            high *= 2
        if nats <= 0 or high >= ENOUGH:
            return 0.0 if nats <= 0 else ENOUGH
        return float(brentq(lambda tilt: self._nats(self._tilted_bins(tilt)) - nats, 0.0, high, xtol=1e-7))

    def _tilted_bins(self, tilt: float) -> Tensor:
        """Masses [classes, bins] of ``p exp(tilt r) / Z``."""
        return (self._masses.log() + tilt * self._scores).softmax(1)

    def tilted(self, tilt: float) -> Tensor:
        """``p exp(tilt r) / Z`` on the grid, [classes, points]."""
        return (self._density.log() + tilt * self._scores.gather(1, self._bins[:, self._place])).softmax(1)

    def draw(self, density: Tensor, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(`count` samples of each class [N, 2], their labels [N]) of a density on the grid [classes, points]."""
        chosen = torch.multinomial(density.float(), count, replacement=True, generator=draws)
        return self._points[chosen.flatten()], torch.arange(len(density)).repeat_interleave(count)

    def of_samples(self, samples: Tensor, labels: Tensor) -> Point:
        """Estimates of samples [N, 2] with their labels [N].

        The bias of an entropy of counts is taken out to first order. Of `tv` it stays: the frontier's own samples have some.
        """
        own, fits = self._judged(samples, labels)
        shares, divergences, rewards = [], [], []
        for label in range(self.task.num_classes):
            bins = self._bins[label, self._cell_of(samples[labels == label])]
            counts = torch.bincount(bins, minlength=self._masses.shape[1]).double()
            shares.append(share := counts / counts.sum())
            rewards.append(float(share @ self._scores[label]))
            # A cell of the grid's edge may have no mass in double precision.
            plain = torch.special.xlogy(share, share / self._masses[label].clamp(min=1e-12)).sum()
            divergences.append(float(plain - ((counts > 0).sum() - 1) / (2 * counts.sum())))
        nats, reward = statistics.fmean(divergences), statistics.fmean(rewards)
        tilt = self.tilt_of(nats)
        tv = (torch.stack(shares) - self._tilted_bins(tilt)).abs().sum(1).mean() / 2
        below = self.frontier(tilt).reward - reward
        return Point(nats, reward, below, float(own.mean()), float(fits.double().mean()), float(tv))

    @torch.no_grad()
    def _judged(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(rewards [N] in double precision, whether each point fits [N])."""
        scores = self._rewards(points, self.task.prompts(labels), **self.task.columns(labels))
        if scores.causes:
            raise RunError("\n".join(f"rewards: '{name}' failed in the plane: {why}" for name, why in scores.causes.items()))
        return scores.total.double(), self._fits(points, labels)

    def _log_density(self, label: int) -> Tensor:
        """Log density of the teacher's data of a class on the grid; wrong labels are of all classes, outliers of any place."""
        task, points = self.task, self._points
        every = torch.stack([task.log_density(points, torch.full((len(points),), c)) for c in range(task.num_classes)])
        mixed = (1 - task.label_noise) * every[label].exp() + task.label_noise * every.exp().mean(0)
        uniform = (points.abs() <= task.reach).all(1) / (2 * task.reach) ** 2
        return ((1 - task.outliers) * mixed + task.outliers * uniform).clamp(min=1e-30).log()

    def _cell_of(self, points: Tensor) -> Tensor:
        """The cell [N] of points [N, 2]; those outside count for the nearest one."""
        index = ((points / CELL) + self._cells / 2).floor().long().clamp(0, self._cells - 1)
        return index[:, 0] * self._cells + index[:, 1]

    def _binned(self) -> Tensor:
        """The bin of every cell, [classes, cells]: itself, or its block where p has little mass and few samples would fall."""
        rows = torch.arange(self._cells) // BLOCK
        blocks = (rows[:, None] * (self._cells // BLOCK) + rows).flatten() + self._cells**2
        empty = torch.zeros(len(self._density), self._cells**2, dtype=torch.double)
        return torch.where(empty.index_add(1, self._place, self._density) < RARE, blocks, torch.arange(self._cells**2))

    def _in_bins(self, density: Tensor) -> Tensor:
        """Masses [classes, bins] of a density on the grid [classes, points]."""
        count = self._cells**2 + (self._cells // BLOCK) ** 2
        return density.new_zeros(len(density), count).scatter_add(1, self._bins[:, self._place], density)


def arms() -> dict[str, list[Arm]]:
    """Arms by curve, the first of which is DMD alone."""
    chosen = {"dmd": [Arm("dmd", "dmd")]}
    for curve, (objective, option, values, more) in CURVES.items():
        strengths = [value if isinstance(value, str) else f"{value:g}" for value in values]
        chosen[curve] = [Arm(f"{curve}@{v}", objective, (*more, f"objective.{option}={v}")) for v in strengths]
    return chosen


def run(
    curves: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], output: Path, workers: int, console: Console
) -> dict[str, Any]:  # fmt: skip
    """Trains what is missing, measures all of it, and writes `frontier.json` to `output`.

    Args:
        curves: names from `arms`.
        seeds: the seeds; each trains its own teacher.
        overrides: overrides of the recipe for all arms, on top of `SETTINGS`.
        output: folder of the runs.
        workers: number of worker processes of one thread; 1 trains in this one.
        console: console for one line per finished run.
    """
    settings, plugins = (*SETTINGS, *overrides), get_plugin_manager()
    chosen = [arm for curve in curves for arm in arms()[curve]]
    for arm in chosen:  # all of them, before the first is trained
        load("modes2d", plugins, (*settings, *arm.overrides), arm.objective)
    jobs = [Job("modes2d", settings, output, seed, arm) for seed in seeds for arm in chosen]
    if workers == 1:
        for job in jobs:
            with one_thread():
                train_arm(job)
            console.print(f"{job.name}, seed {job.seed}", highlight=False)
    else:
        with worker_pool(workers, threads=1) as pool:
            run_jobs(pool, train_arm, jobs, console)
    return measured(curves, seeds, settings, output)


def measured(curves: Sequence[str], seeds: Sequence[int], settings: Sequence[str], output: Path) -> dict[str, Any]:
    """All points, written to `frontier.json` in `output`: frontier, samples of it as a control, teachers, and students.

    Each is a list by seed. `scored` has the samples that an update of each arm scored, mean over its log.
    """
    plugins = get_plugin_manager()
    recipes = [load("modes2d", plugins, (*settings, f"train.seed={seed}")) for seed in seeds]
    planes = [Plane(recipe, plugins) for recipe in recipes]
    content: dict[str, Any] = {"seeds": list(seeds), "settings": list(settings), "curves": {}, "scored": {}}
    content["frontier"] = {f"{tilt:g}": [plane.frontier(tilt)._asdict() for plane in planes] for tilt in DRAWN}
    # What the estimates add to exact values, where the distribution is known.
    content["control"] = {
        f"{tilt:g}": [drawn(recipe, plane, tilt) for recipe, plane in zip(recipes, planes, strict=True)] for tilt in LAMBDAS
    }
    content["teacher"] = [teacher(recipe, plane) for recipe, plane in zip(recipes, planes, strict=True)]
    for curve in curves:
        content["curves"][curve] = {}
        for arm in arms()[curve]:
            points, scored = [], []
            for seed, plane in zip(seeds, planes, strict=True):
                folder = run_folder(output, arm.name, seed)
                latest = load_file(folder / "samples" / "latest.safetensors")
                points.append(plane.of_samples(latest["samples"], latest["labels"])._asdict())
                log = run_log.read(folder / "metrics.jsonl")
                scored += [line["cost/scored_samples"] for line in log if "cost/scored_samples" in line]
            content["curves"][curve][arm.name] = points
            content["scored"][arm.name] = statistics.fmean(scored or [0.0])
    write_json(output / "frontier.json", content)
    return content


def drawn(recipe: Recipe, plane: Plane, tilt: float) -> dict[str, float]:
    """The estimate of as many samples of the frontier's distribution as a student is measured by."""
    count = recipe.config.evaluate.samples // plane.task.num_classes
    draws = torch.Generator().manual_seed(recipe.config.train.seed)
    return plane.of_samples(*plane.draw(plane.tilted(tilt), count, draws))._asdict()


def teacher(recipe: Recipe, plane: Plane) -> dict[str, float]:
    """The teacher's own samples in many steps: what a student of it can be at best without a reward."""
    model, seed = recipe.config.model, recipe.config.train.seed
    backbone = load_backbone(model, plane.task, seed, get_plugin_manager().families())
    return plane.of_samples(*teacher_samples(backbone, model, plane.task, seed, recipe.config.evaluate.samples, 1.0))._asdict()


def table(content: Mapping[str, Any]) -> str:
    """A Markdown table: mean and standard deviation over seeds, and the samples that an update scored."""
    rows = {f"frontier, lambda {tilt:g}": content["frontier"][f"{tilt:g}"] for tilt in LAMBDAS}
    rows |= {f"samples of lambda {tilt}": points for tilt, points in content["control"].items()}
    rows |= {"teacher": content["teacher"]}
    rows |= {name: points for curve in content["curves"].values() for name, points in curve.items()}
    names = ("nats from p", "reward", "below the frontier", "own reward", "precision", "tv from it", "scored per update")
    lines = [f"| distribution | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, points in rows.items():
        columns = [[point[key] for point in points] for key in Point._fields]
        cells = [f"{statistics.fmean(c):.3f}" + (f" +- {statistics.stdev(c):.3f}" if len(c) > 1 else "") for c in columns]
        cells.append(f"{content['scored'][name]:.0f}" if name in content["scored"] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(content: Mapping[str, Any], path: Path) -> None:
    """Draws reward and precision against divergence: the frontier, and one curve per method with its points by seed."""
    matplotlib.rcParams |= {"svg.hashsalt": "frontier", "svg.fonttype": "none", "font.size": 8}
    canvas, panels = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    for axes, key in zip(panels, ("reward", "precision"), strict=True):
        frontier = [[statistics.fmean(p[k] for p in seeds) for k in ("nats", key)] for seeds in content["frontier"].values()]
        axes.plot(*zip(*frontier, strict=True), color="0.2", linewidth=2, label="p exp(lambda r)")
        teachers = [(p["nats"], p[key]) for p in content["teacher"]]
        axes.scatter(*zip(*teachers, strict=True), color="0.5", marker="x", s=20, label="teacher")
        for index, (curve, points) in enumerate(content["curves"].items()):
            colour = pyplot.get_cmap("tab20")(2 * index % 20 + index // 10)
            means = [[statistics.fmean(p[k] for p in seeds) for k in ("nats", key)] for seeds in points.values()]
            axes.plot(*zip(*means, strict=True), color=colour, marker="o", markersize=3, linewidth=1, label=curve)
            every = [(p["nats"], p[key]) for seeds in points.values() for p in seeds]
            axes.scatter(*zip(*every, strict=True), color=colour, s=3, alpha=0.5)
        axes.set(xlabel="nats from the teacher's density", ylabel=key)
        students = [p["nats"] for points in content["curves"].values() for seeds in points.values() for p in seeds]
        axes.set_xlim(right=1.05 * max(students))  # the frontier goes on to where a single bin has all mass
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=7, frameon=False)
    canvas.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(canvas)


def main() -> None:
    """Runs what is missing and prints the table, or draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "figure"))
    parser.add_argument("--arms", default=",".join(arms()), help="curves, separated by commas [default: all]")
    parser.add_argument("--seeds", default="4", help="number of seeds, or the seeds themselves separated by commas")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"), help="folder of the runs")
    parser.add_argument("--image", type=Path, help="file of the figure [default: frontier.svg in the folder of the runs]")
    parser.add_argument("--workers", type=int, default=2, help="number of worker processes of one thread [default: 2]")
    options = parser.parse_args()
    if options.command == "figure":
        content = json.loads((options.output / "frontier.json").read_text())
        figure(content, options.image or options.output / "frontier.svg")
        return
    curves = options.arms.split(",")
    if unknown := set(curves) - set(arms()):
        parser.error(f"--arms: must be of {', '.join(arms())}, got {', '.join(sorted(unknown))}")
    content = run(curves, parse_seeds(options.seeds), options.overrides, options.output, options.workers, Console())
    print(table(content))


if __name__ == "__main__":
    main()
