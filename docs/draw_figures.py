"""Draws the figures of docs/how-it-works.md, in closed form with the package's own maths; a few seconds, nothing is trained.

    python docs/draw_figures.py [FOLDER]     # docs/images unless given

Equal versions of the libraries give equal files.
"""

import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from amd_plugin import Signals, group_advantage
from amd_plugin.maths.operators import Side, adaptation_weights, amd, dmd
from amd_plugin.maths.sharpening import sharpening_weights

GREY, ORANGE, BLUE, GREEN = "#555555", "#D55E00", "#0072B2", "#009E73"
LEVELS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # flow times

# The plane: two modes that show what the prompt asks for, and one that the teacher learnt by mistake.
MEANS = torch.tensor([[-1.6, 0.5], [0.2, -1.3], [1.5, 1.1]]).double()
MASSES = torch.tensor([0.4, 0.3, 0.3]).double()
STD, SHARPENING, STRENGTH = 0.35, 2.0, 0.5


def denoise(x_t: Tensor, t: float, centres: Tensor, masses: Tensor, std: float = 0.0) -> Tensor:
    """E[x | x_t] [N, D] at flow time `t`, under Gaussians of `std` at `centres` [K, D]; particles are those of `std` 0."""
    variance = ((1 - t) * std) ** 2 + t**2
    residual = x_t[:, None] - (1 - t) * centres
    share = (masses.log() - residual.square().sum(2) / (2 * variance)).softmax(1)[:, :, None]
    return (share * (centres + (1 - t) * std**2 / variance * residual)).sum(1)


def density(x: Tensor, centres: Tensor, masses: Tensor, std: float) -> Tensor:
    """Density [N] of the mixture at `x` [N, D], up to a constant."""
    return torch.exp(-(x[:, None] - centres).square().sum(2) / (2 * std**2)) @ masses


def reward(x: Tensor) -> Tensor:
    """Log-odds [N], limited, that samples `x` [N, 2] show what was asked for."""
    right, wrong = (density(x, MEANS[part], MASSES[part], 2 * STD) for part in (slice(2), slice(2, 3)))
    return torch.log((right + 1e-9) / (wrong + 1e-9)).clamp(-3, 3)


def advantages(x: Tensor) -> Tensor:
    """Advantages [N] of particles `x` [N, 2], which are one group; the reward's unit is 3."""
    return group_advantage(reward(x) / 3, torch.zeros(len(x), dtype=torch.long), scale="none")


def paths(start: Tensor, adaptive: bool, steps: int = 100, draws: int = 2) -> Tensor:
    """Particles [steps + 1, N, 2] of a student that is moved by exact predictions of teacher and fake score."""
    x, random, path = start, torch.Generator().manual_seed(1), [start]
    operator = amd(1.0, STRENGTH, "negative") if adaptive else dmd()
    for step in range(steps):
        a, move = advantages(x), torch.zeros_like(x)
        w = sharpening_weights(a, SHARPENING if adaptive else 0.0, "exponential").to(x)
        for t in LEVELS:
            noise = torch.randn(draws, *x.shape, generator=random, dtype=x.dtype)
            x_t = ((1 - t) * x + t * noise).flatten(0, 1)
            real, fake = denoise(x_t, t, MEANS, MASSES, STD), denoise(x_t, t, x, w)
            signals = Signals(x_t, real, None, fake, advantage=a.repeat(draws))
            move += operator(signals).total().unflatten(0, (draws, -1)).mean(0)
        x = x + (0.8 if step < steps * 0.7 else 0.2) * move / len(LEVELS)
        path.append(x)
    return torch.stack(path)


def forbidden_zone() -> Figure:
    """The teacher's density, the zone, and where samples of a student go under DMD and under AMD."""
    start = torch.randn(160, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 1.3
    lines = torch.linspace(-3.2, 3.2, 61).double()
    x, y = torch.meshgrid(lines, lines, indexing="xy")
    at = torch.stack((x.flatten(), y.flatten()), 1)
    teacher = density(at, MEANS, MASSES, STD).reshape(x.shape)
    # The zone is relative to the group: here that of the samples at the start.
    everywhere = ((reward(at) - reward(start).mean()) / 3).reshape(x.shape)
    canvas = Figure(figsize=(8, 4.2), layout="constrained")
    for axes, (name, colour) in zip(canvas.subplots(1, 2), (("DMD", BLUE), ("AMD", ORANGE)), strict=True):
        path = paths(start, adaptive=name == "AMD")
        failing = float((advantages_beside(path[-1], start) <= -0.5).double().mean())
        axes.contourf(x, y, teacher, levels=[0.04, 0.12, 0.2, 0.3], cmap="Greys", alpha=0.5, extend="max")
        axes.contourf(x, y, everywhere, levels=[-9, -0.5], colors=[GREEN], alpha=0.12)
        axes.contour(x, y, everywhere, levels=[-0.5], colors=[GREEN], linewidths=1, linestyles="dashed")
        for track in path[::2, ::4].transpose(0, 1):
            axes.plot(*track.T, color=colour, linewidth=0.6, alpha=0.7)
        axes.scatter(*path[0, ::4].T, s=7, facecolors="none", edgecolors=GREY, linewidths=0.6)
        axes.scatter(*path[-1, ::4].T, s=9, color=colour, linewidths=0)
        axes.text(3.05, 2.85, "Forbidden Zone", color="#006b4f", ha="right")
        axes.set(
            title=f"{name}: {failing:.0%} of the samples end in the zone", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal"
        )
        axes.set(xticks=[], yticks=[])
    return canvas


def advantages_beside(x: Tensor, group: Tensor) -> Tensor:
    """Advantages [N] that particles `x` [N, 2] would have among the samples of `group` [M, 2]."""
    return ((reward(x) - reward(group).mean()) / 3).clamp(-1, 1)


def arrow(axes: Axes, start: Tensor, vector: Tensor, colour: str, width: float = 1.2, style: str = "-") -> None:
    """An arrow along `vector` [2] from `start` [2]."""
    to = (start + vector).tolist()
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=to, xytext=start.tolist(), arrowprops=look)


def adaptation() -> Figure:
    """What alpha and beta do to the direction of a failing, a middling and a good sample, in both forms."""
    match, guide, x0 = torch.tensor([[0.3, 1.0]]), torch.tensor([[1.1, -0.1]]), torch.zeros(1, 2)
    forms: tuple[tuple[Side, str], ...] = (("both", "the paper's form"), ("negative", "the default"))
    canvas = Figure(figsize=(8, 4.9), layout="constrained")
    for row, (side, title) in zip(canvas.subplots(2, 3), forms, strict=True):
        for axes, (name, a) in zip(row, (("failing", -1.0), ("middling", 0.0), ("good", 1.0)), strict=True):
            signals = Signals(x0, match, match - guide, x0, advantage=torch.tensor([a]))
            plain, adapted = dmd(2.0)(signals), amd(2.0, STRENGTH, side)(signals)
            alpha, beta = (float(weight) for weight in adaptation_weights(torch.tensor([a]), STRENGTH, side))
            origin = torch.zeros(2)
            arrow(axes, origin, adapted.match[0], BLUE)
            arrow(axes, adapted.match[0], adapted.guide[0], GREEN)
            arrow(axes, origin, plain.total()[0], GREY, 2.4, "--")
            arrow(axes, origin, adapted.total()[0], ORANGE, 2.4)
            axes.set_title(f"{name} sample, {title}\na = {a:g}: alpha = {alpha:g}, beta = {beta:g}", fontsize=9)
            axes.set(xlim=(-0.3, 2.3), ylim=(-0.25, 1.75), aspect="equal", xticks=[], yticks=[])
    for name, colour, style in (
        ("beta match", BLUE, "-"), ("alpha guide", GREEN, "-"), ("direction of DMD", GREY, "--"), ("of AMD", ORANGE, "-")
    ):  # fmt: skip
        row[0].plot([], [], color=colour, linestyle=style, label=name)
    canvas.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return canvas


def sharpening() -> Figure:
    """What weights do to the fake score of a student that equals its teacher: its density, its energy, the direction."""
    x = torch.linspace(-4, 4, 401).double()[:, None]
    centres, masses, std = torch.tensor([[-1.7], [1.7]]).double(), torch.tensor([0.4, 0.6]).double(), 0.6
    q = density(x, centres, masses, std)
    q /= q.sum()
    a = torch.tanh(2 * x[:, 0])
    w = sharpening_weights(a, 1.0, "exponential")
    sharpened = q * w / (q * w).sum()
    canvas = Figure(figsize=(10, 3), layout="constrained")
    panels, scale = canvas.subplots(1, 3), float(x[1] - x[0])
    for label, values, colour, style in (("q", q, GREY, "--"), ("q w / Z", sharpened, ORANGE, "-")):
        panels[0].plot(x, values / scale, color=colour, linestyle=style, label=label)
        panels[1].plot(x, -(values / scale).log(), color=colour, linestyle=style, label=f"of {label}")
    panels[2].axhline(0, color=GREY, linestyle="--", label="plain: 0 at every t")
    for t, colour in ((0.3, ORANGE), (0.6, GREEN)):
        direction = denoise(x, t, x, q) - denoise(x, t, x, sharpened)  # the teacher's density is q
        panels[2].plot(x, direction, color=colour, label=f"sharpened, t = {t:g}")
    titles = ("density that the fake score learns", "its energy, -log density", "student's direction at x_t")
    for axes, title in zip(panels, titles, strict=True):
        axes.axvspan(-4, 0, color=BLUE, alpha=0.08, linewidth=0)
        axes.set(title=title, xlim=(-4, 4))
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_ylim(0, 8)
    panels[0].text(0.03, 0.92, "failures", color=BLUE, transform=panels[0].transAxes)
    return canvas


FIGURES = {"forbidden_zone": forbidden_zone, "adaptation": adaptation, "sharpening": sharpening}


def draw(folder: Path) -> list[Path]:
    """Draws every figure into `folder`, and returns the files."""
    files = []
    with matplotlib.rc_context({"svg.hashsalt": "how it works", "svg.fonttype": "none", "font.size": 9}):
        for name, figure in FIGURES.items():
            files.append(folder / f"{name}.svg")
            # A ground of its own: the lines are read on a dark page too.
            figure().savefig(files[-1], metadata={"Date": None, "Creator": None}, facecolor="white")
    return files


if __name__ == "__main__":
    for file in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"):
        print(file)
