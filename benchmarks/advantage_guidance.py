"""Advantage guidance in numbers and one picture: its bias, its table, its sensor, schedules of its scale, the plane.

    python benchmarks/advantage_guidance.py bias      # fixed point against p exp(lambda a), in closed form; minutes
    python benchmarks/advantage_guidance.py curve     # length and reliability of the contrast by learning rate of the table
    python benchmarks/advantage_guidance.py sensor    # failures found among samples that were never scored
    python benchmarks/advantage_guidance.py schedules # its scale by training and noise level; a quarter of an hour
    python benchmarks/advantage_guidance.py rungs     # students by learning rate of the table of rungs; ten minutes
    python benchmarks/advantage_guidance.py steps     # what a step along each direction gains on scenes; ten minutes
    python benchmarks/advantage_guidance.py figure    # docs/images/advantage_guidance.svg

All but `figure` print a Markdown table; docs/how-it-works.md has them.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import matplotlib
import torch
from accelerate import Accelerator
from matplotlib import pyplot
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.distributions import Normal

from amd_plugin import Signals, get_plugin_manager, hookimpl
from amd_plugin.host import run
from amd_plugin.host.training import learner
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.maths.advantage_guidance import BAD, GOOD, KAPPA, NONE, guide_by_advantage
from amd_plugin.maths.coherence import BANDS
from amd_plugin.maths.operators import chain, dmd
from amd_plugin.models.step_conditioning import in_rungs
from amd_plugin.randomness import generator
from amd_plugin.recipe.loading import load

MEANS, MASSES, STD = torch.tensor([-2.0, 0.0, 2.0]).double(), torch.tensor([0.30, 0.45, 0.25]).double(), 0.3
LEVELS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.9)
GAMMAS = (0.5, 1.0, 2.0, 4.0, 10.0)
RUNG_RATES = (None, 2e-5, 2e-4, 4e-4, 2e-3, 1e-2)  # None: no table


def advantage(x: Tensor) -> Tensor:
    """Advantage [N] of samples [N]: the right mode is good and the left one bad, the middle neither."""
    return 0.5 * torch.tanh(2 * (x - 1)) + 0.5 * torch.tanh(2 * (x + 1))


def denoise(x_t: Tensor, t: float, particles: Tensor, weights: Tensor) -> Tensor:
    """E[x | x_t] [N] under weighted `particles` [P], for x_t [N] at flow time t."""
    logits = weights.log() - (x_t[:, None] - (1 - t) * particles).square() / (2 * t**2)
    return logits.softmax(1) @ particles


def teacher(x_t: Tensor, t: float) -> Tensor:
    """E[x | x_t] [N] under the teacher's mixture."""
    variance = ((1 - t) * STD) ** 2 + t**2
    residual = x_t[:, None] - (1 - t) * MEANS
    responsibility = (MASSES.log() - residual.square() / (2 * variance)).softmax(1)
    return (responsibility * (MEANS + (1 - t) * STD**2 / variance * residual)).sum(1)


def fixed_point(gamma: float, count: int = 240, steps: int = 240) -> Tensor:
    """Particles [count] at rest: a student of particles, moved by exact predictions of teacher and fake score."""
    x, draws = 1.5 * Normal(0.0, 1.0).icdf((torch.arange(count) + 0.5) / count).double(), torch.Generator().manual_seed(0)
    operator = chain(dmd(), guide_by_advantage(gamma))
    for step in range(steps):
        quantiles = ((torch.arange(8) + torch.rand(8, generator=draws)) / 8).clamp(1e-3, 1 - 1e-3)
        noise, a = Normal(0.0, 1.0).icdf(quantiles).double(), advantage(x)
        good, bad, move = (1 + KAPPA * a) / 2, (1 - KAPPA * a) / 2, torch.zeros_like(x)
        for t in LEVELS:
            x_t = ((1 - t) * x[:, None] + t * noise).reshape(-1)
            fake, fake_good, fake_bad = (denoise(x_t, t, x, w)[:, None] for w in (torch.ones_like(x), good, bad))
            signals = Signals(
                x_t[:, None], teacher(x_t, t)[:, None], None, fake, advantage=a.repeat_interleave(len(noise)),
                fake_good=fake_good, fake_bad=fake_bad,
            )  # fmt: skip
            move += operator(signals).total().reshape(count, -1).mean(1)
        x = x + (1.0 if step < steps * 0.7 else 0.3) * move / len(LEVELS) / (1 + 0.25 * gamma)
    return x


def masses(x: Tensor) -> Tensor:
    """Masses [3] of particles [N] in the three modes."""
    return torch.bincount((x[:, None] - MEANS).abs().argmin(1), minlength=3) / len(x)


def tilted(tilt: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
    """Masses [3] of ``p exp(tilt)`` and its divergence from p in nats, by quadrature."""
    grid = torch.linspace(-4, 4, 8001).double()
    p = (MASSES * torch.exp(-((grid[:, None] - MEANS) ** 2) / (2 * STD**2))).sum(1)
    p /= p.sum()
    q = p * torch.exp(tilt(grid))
    q /= q.sum()
    mode = (grid[:, None] - MEANS).abs().argmin(1)
    return torch.bincount(mode, q, minlength=3), float((torch.special.xlogy(q, q / p)).sum())


def tilt_of(divergence: Callable[[float], float], nats: float) -> float:
    """The tilt in [0, 60] whose divergence, which rises with it, is `nats`."""
    low, high = 0.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) < nats else (low, middle)
    return low


def bias() -> None:
    """Prints the fixed point by gamma, the law of low noise, and the optimum ``p exp(lambda a)`` at the divergence of each."""
    heads = "gamma | masses at rest | its KL | p exp(lambda a) of it | TV | law at low noise | its KL | p exp(lambda a) of it"
    print(f"| {heads} |")
    print("|---" * 8 + "|")
    base = tilted(lambda x: 0 * x)[0]

    def between_modes(m: Tensor) -> float:
        return float(torch.special.xlogy(m, m / base).sum())

    def exponential(tilt: float) -> tuple[Tensor, float]:
        return tilted(lambda x: tilt * advantage(x))

    for gamma in (0.0, *GAMMAS):
        at_rest = masses(fixed_point(gamma)).double()
        law, divergence = tilted(lambda x, g=gamma: g * torch.log((1 + KAPPA * advantage(x)) / 2))
        best = exponential(tilt_of(lambda tilt: between_modes(exponential(tilt)[0]), between_modes(at_rest)))[0]
        of_law = exponential(tilt_of(lambda tilt: exponential(tilt)[1], divergence))[0]
        texts = [" / ".join(f"{value:.2f}" for value in m) for m in (at_rest, best, law, of_law)]
        tv = (at_rest - best).abs().sum() / 2
        first = f"| {gamma:g} | {texts[0]} | {between_modes(at_rest):.2f} | {texts[1]} | {tv:.2f} |"
        print(f"{first} {texts[2]} | {divergence:.2f} | {texts[3]} |")
    graded()


def graded() -> None:
    """Prints what gamma costs where success is relative to the student's own mean, as it is for a reward without a threshold.

    Rewards of the teacher's samples are Gaussian. The unit is a quarter of the student's own spread.
    """
    print("\n| gamma | KL of p P(good)^gamma, with the teacher's mean and spread | with the student's own |\n|---|---|---|")
    grid = torch.linspace(-8, 16, 24001).double()
    p = torch.exp(-grid.square() / 2)
    p /= p.sum()
    for gamma in (0.5, 1.0, 2.0, 4.0):
        q, costs = p, []
        for _ in range(400):
            mean = (q * grid).sum()
            a = (4 * (grid - mean) / (q * (grid - mean).square()).sum().sqrt()).clamp(-1, 1)
            solved = p * ((1 + KAPPA * a) / 2) ** gamma
            solved /= solved.sum()
            costs.append(float(torch.special.xlogy(solved, solved / p).nan_to_num().sum()))
            q = 0.7 * q + 0.3 * solved
        print(f"| {gamma:g} | {costs[0]:.2f} | {costs[-1]:.2f} |")


def trainer_of(recipe: str, seed: int, *overrides: str, objective: str = "amd") -> Trainer:
    """A trainer of a shipped recipe with one thread."""
    plugins = get_plugin_manager()
    settings = (f"train.seed={seed}", "train.trackers=[]", *overrides)
    return Trainer(load(recipe, plugins, settings, objective), plugins, Accelerator(cpu=True))


def curve() -> None:
    """Prints ratio and reliability of the contrast by learning rate of the table and student updates, mean of two seeds."""
    steps, rates = (25, 50, 100, 200), (2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 1e-2, 2e-2)
    print("| recipe | learning rate | " + " | ".join(f"{step} updates" for step in steps) + " |")
    print("|---" * (2 + len(steps)) + "|")
    for recipe in ("modes2d", "digits"):
        for rate in rates:
            cells: dict[int, list[tuple[float, float]]] = {step: [] for step in steps}
            for seed in (100, 101):
                settings = ("objective.advantage_guidance=1", "objective.sharpening=0", f"train.outcome_lr={rate}")
                trainer = trainer_of(recipe, seed, *settings)
                for step in range(1, max(steps) + 1):
                    metrics = trainer.cycle()
                    if step in cells:
                        measured = (metrics[f"objective/contrast_{name}"] for name in ("ratio", "reliability"))
                        cells[step].append(tuple(float(value) for value in measured))
            texts = (
                f"{statistics.fmean(r for r, _ in values):.3f}, {statistics.fmean(q for _, q in values):.2f}"
                for values in cells.values()
            )
            print(f"| {recipe} | {rate:g} | " + " | ".join(texts) + " |", flush=True)


@torch.no_grad()
def evidence_of_success(trainer: Trainer, x0: Tensor, labels: Tensor, levels: Sequence[float], draws: int = 4) -> Tensor:
    """Mean cosine [N] between the contrast at noised samples and the samples, over noise `levels`: high for success."""
    total, forward = torch.zeros(len(x0)), trainer.forward
    for level in levels:
        for draw in range(draws):
            noise = torch.randn(x0.shape, generator=generator(0, "sensor", level, draw))
            x_t, timestep = forward.renoise(x0, noise, torch.full((len(x0),), level))
            good, bad = predictions(trainer, x_t, timestep, labels)
            c, residual = (good - bad).flatten(1), (x0 - (good + bad) / 2).flatten(1)
            total += torch.nn.functional.cosine_similarity(c, residual) / draws / len(levels)
    return total


@torch.no_grad()
def predictions(trainer: Trainer, x_t: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The fake score's predictions of x0 [N, ...] for success and for failure."""
    forward, fake_score, predicted = trainer.forward, trainer.fake_score, []
    for outcome in (GOOD, BAD):
        fake_score.outcome = outcome
        output = forward.caller.call(fake_score, x_t, timestep, forward.condition(labels))
        predicted.append(forward.schedule.to_x0(output, x_t, forward.schedule.level(timestep)))
    fake_score.outcome = NONE
    return predicted[0], predicted[1]


def sensor() -> None:
    """Prints how well the contrast alone finds failures among samples that no reward has seen, by third of the schedule."""
    print("| recipe | reward | failures | " + " | ".join(f"AUROC, {band} noise" for band in (*BANDS, "all")) + " |")
    print("|---" * (4 + len(BANDS)) + "|")
    thirds = {"low": (0.1, 0.2, 0.3), "middle": (0.4, 0.5, 0.6), "high": (0.7, 0.8, 0.9)}
    for recipe, updates in (("modes2d", 200), ("digits", 200)):
        for reward in ("classifier", "random"):
            rows, shares = [], []
            for seed in (100, 101, 102, 103):
                settings = ["objective.advantage_guidance=1", "objective.sharpening=0"]
                trainer = trainer_of(recipe, seed, *settings, *(["rewards=[{name: random}]"] if reward == "random" else []))
                for _ in range(updates):
                    trainer.cycle()
                labels = torch.arange(trainer.task.num_classes).repeat(100)
                x0 = trainer.sample(labels, "sensor")
                judge = trainer_of(recipe, seed).rewards
                media = trainer.backbone.decode(x0)
                scores = judge(media, trainer.task.prompts(labels), **trainer.task.columns(labels)).total
                failed = scores < scores.median() - 1.0
                shares.append(float(failed.float().mean()))
                levels = [*thirds.values(), sum(thirds.values(), ())]
                evidence = (evidence_of_success(trainer, x0, labels, level) for level in levels)
                rows.append([float(roc_auc_score(failed, -e)) for e in evidence])
            cells = " | ".join(f"{statistics.fmean(v):.3f} +- {statistics.pstdev(v):.3f}" for v in zip(*rows, strict=True))
            print(f"| {recipe} | {reward} | {statistics.fmean(shares):.3f} | {cells} |", flush=True)


# Factor on the scale by noise level [B] and by the part of training that is over, both in [0, 1].
SCHEDULES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "constant": lambda sigma, done: torch.ones_like(sigma),
    "to 0 over the last half": lambda sigma, done: torch.full_like(sigma, min(1.0, 2 - 2 * done)),
    "to 0 over the last quarter": lambda sigma, done: torch.full_like(sigma, min(1.0, 4 - 4 * done)),
    "from 0 over the first half": lambda sigma, done: torch.full_like(sigma, min(1.0, 2 * done)),
    "low noise, sigma < 0.5": lambda sigma, done: (sigma < 0.5).to(sigma),
    "high noise, sigma >= 0.5": lambda sigma, done: (sigma >= 0.5).to(sigma),
}


class Scheduled:
    """A plugin with one of `SCHEDULES`."""

    def __init__(self, factor: Callable[[Tensor, float], Tensor]):
        self._factor = factor

    @hookimpl
    def distill_advantage_schedule(self, sigma: Tensor, step: int, max_steps: int, metrics: Mapping[str, float]) -> Tensor:
        """The schedule's factors [B]."""
        return self._factor(sigma, step / max_steps)


def schedules() -> None:
    """Prints what students in the plane are like whose scale changes over training or with the noise level, four seeds each."""
    metrics = ("precision", "tv", "sliced_wasserstein", "coverage")
    print(f"| scale | schedule | {' | '.join(metrics)} |")
    print("|---" * (2 + len(metrics)) + "|")
    for scale in ("4", "auto"):
        for name, factor in SCHEDULES.items():
            rows = []
            for seed in (100, 101, 102, 103):
                plugins = get_plugin_manager()
                plugins.register(Scheduled(factor))
                settings = (f"objective.advantage_guidance={scale}", "objective.sharpening=0", f"train.seed={seed}",
                            "train.trackers=[]", "train.evaluate_every=0")  # fmt: skip
                with tempfile.TemporaryDirectory() as folder:
                    student = run.train(load("modes2d", plugins, settings, "amd"), plugins, Path(folder, "run"))
                rows.append([student[metric] for metric in metrics])
            cells = " | ".join(f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f}" for v in zip(*rows, strict=True))
            print(f"| {scale} | {name} | {cells} |", flush=True)


def steps() -> None:
    """Prints what samples on scenes gain by a step along matching, the contrast, and a reward's gradient, in nats of judge B.

    Samples are those of a student that made 100 updates of AMD from the distilled one. A direction is a mean over four draws of
    noise, and made as long as the step. The gradient is that of judge A, the training reward, which saw no sample of judge B.
    """
    lengths, draws, count = (0.3, 1.0, 2.0, 4.0), 4, 960
    starts = ("model.student_from=benchmarks/starts/scenes/student", "model.fake_score_from=benchmarks/starts/scenes")
    trainer = trainer_of("scenes", 100, *starts, "train.max_steps=100", "objective.advantage_gradient=0")
    for _ in range(trainer.train.max_steps):
        trainer.cycle()
    task, size = trainer.task, trainer.train.batch_size
    labels = task.balanced_labels(count)
    x0, rungs = trainer.sample(labels, "steps"), torch.full((size,), len(trainer.forward.ladder) - 1)

    def score(x: Tensor, judge: str) -> Tensor:
        return task.verdict(judge, trainer.backbone.decode(x), task.prompts(labels)).soft

    leaf = x0.clone().requires_grad_()
    directions = {"gradient of the reward": torch.autograd.grad(score(leaf, "a").sum(), leaf)[0]}
    source = trainer.rollouts.batch(0, "student", 0)
    for index, name in enumerate(BANDS):
        match, contrast = torch.zeros_like(x0), torch.zeros_like(x0)
        for draw, first in itertools.product(range(draws), range(0, count, size)):
            rows = slice(first, first + size)
            batch = source.again(f"steps {name}", draw * count + first, labels[rows], rungs)
            low, high = max(index / len(BANDS), trainer.train.sigma[0]), min((index + 1) / len(BANDS), trainer.train.sigma[1])
            signals = trainer.forward.signals(x0[rows], batch, slice(None), batch.uniform("level", (low, high)), None)
            direction = dmd(trainer.objective.guidance_scale)(signals)
            match[rows] += direction.match + direction.guide
            contrast[rows] += signals.contrast()
        directions |= {f"matching, {name} noise": match, f"contrast, {name} noise": contrast}
    before = score(x0, "b")
    print("| direction | " + " | ".join(f"a step of {length:g}" for length in lengths) + " |")
    print("|---" * (1 + len(lengths)) + "|")
    for name, direction in directions.items():
        unit = torch.nn.functional.normalize(direction.flatten(1)).view_as(x0)
        gains = (float((score(x0 + length * unit, "b") - before).mean()) for length in lengths)
        print(f"| {name} | " + " | ".join(f"{gain:+.2f}" for gain in gains) + " |", flush=True)


def rungs() -> None:
    """Prints what DMD's students of four steps in the plane are like by the rate of the table of rungs, four seeds each.

    The table has the fake score's rate, 2e-3 here. Without rewards there is no table of outcomes, so that its rate is free.
    """
    metrics = ("precision", "tv", "sliced_wasserstein", "coverage")
    print(f"| learning rate | length of its rows | {' | '.join(metrics)} |")
    print("|---" * (2 + len(metrics)) + "|")
    for rate in RUNG_RATES:
        rows = []
        for seed in (100, 101, 102, 103):
            settings = (
                "model.student_steps=4",
                f"model.rung_conditioning={rate is not None}".lower(),
                f"train.outcome_lr={rate or 1}",
            )
            with patch.object(learner, "in_outcomes", in_rungs):
                trainer = trainer_of("modes2d", seed, *settings, objective="dmd")
            for _ in range(trainer.train.max_steps):
                trainer.cycle()
            tables = [table for name, table in trainer.fake_score.named_parameters().items() if in_rungs(name)]
            length = max((float(table.detach().norm(dim=-1).mean()) for table in tables), default=0.0)
            labels = trainer.task.balanced_labels(trainer.recipe.config.evaluate.samples)
            samples = trainer.sample(labels, "evaluation")
            student = trainer.task.evaluate(samples, labels, samples)
            rows.append([length, *(student[metric] for metric in metrics)])
        cells = " | ".join(f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f}" for v in zip(*rows, strict=True))
        print(f"| {'no table' if rate is None else f'{rate:g}'} | {cells} |", flush=True)


def figure() -> None:
    """Draws one class of the plane: samples, the matching field, the contrast, and the paths of samples over training."""
    matplotlib.rcParams |= {"svg.hashsalt": "advantage guidance", "svg.fonttype": "none", "font.size": 8}

    label, level, updates = 0, 0.4, 400
    arms = {"DMD": ("0.55", "objective.sharpening=0", "objective.advantage_guidance=0"),
            "with advantage guidance": ("tab:blue", "objective.sharpening=0", "objective.advantage_guidance=auto")}  # fmt: skip
    samples, paths = dict[str, Tensor](), dict[str, Tensor]()
    for name, (_, *settings) in arms.items():
        trainer = trainer_of("modes2d", 0, *settings)
        labels, followed, path = torch.full((300,), label), torch.full((30,), label), list[Tensor]()
        for step in range(updates + 1):
            if step % 20 == 0:
                path.append(trainer.sample(followed, "paths"))
            if step < updates:
                trainer.cycle()
        samples[name], paths[name] = trainer.sample(labels, "figure"), torch.stack(path)
    task, (x, y) = trainer.task, torch.meshgrid(torch.linspace(-3.2, 3.2, 22), torch.linspace(-3.2, 3.2, 22), indexing="xy")
    at = torch.stack((x.flatten(), y.flatten()), 1)
    of_class, timestep = torch.full((len(at),), label), trainer.forward.schedule.timestep(torch.full((len(at),), level))
    good, bad = predictions(trainer, at, timestep, of_class)
    with torch.no_grad():
        condition, noise_level = trainer.forward.condition(of_class), trainer.forward.schedule.level(timestep)
        real, fake = (
            trainer.forward.schedule.to_x0(trainer.forward.caller.call(role, at, timestep, condition), at, noise_level)
            for role in (trainer.teacher, trainer.fake_score)
        )
    canvas, panels = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
    titles = ("samples of one prompt", "matching: real - fake", "contrast: good - bad", "paths of samples in training")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
        for mean in task.means[label].tolist():  # type: ignore[attr-defined]  # of this task only
            axes.add_patch(pyplot.Circle(mean, 0.22, fill=False, edgecolor="tab:green", linewidth=1))
    for name, (colour, *_) in arms.items():
        panels[0].scatter(*samples[name].T, s=4, color=colour, linewidths=0, label=name)
        for track in paths[name].transpose(0, 1):
            panels[3].plot(*track.T, color=colour, linewidth=0.7, alpha=0.8)
            panels[3].scatter(*track[-1], s=6, color=colour)
    for axes, field, colour in ((panels[1], real - fake, "0.3"), (panels[2], good - bad, "tab:red")):
        axes.quiver(*at.T, *field.T, color=colour, width=0.006)
    panels[0].legend(loc="lower left", fontsize=6)
    path_of_figure = Path(__file__).parents[1] / "docs" / "images" / "advantage_guidance.svg"
    canvas.savefig(path_of_figure, metadata={"Date": None, "Creator": None})
    print(path_of_figure)


def main() -> None:
    """Runs one part."""
    parts = {"bias": bias, "curve": curve, "sensor": sensor, "schedules": schedules, "steps": steps, "rungs": rungs,
             "figure": figure}  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parts[parser.parse_args().part]()


if __name__ == "__main__":
    main()
