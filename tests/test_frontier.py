"""The frontier benchmark at a tiny size: exact densities, estimates of them, and a run from arms to the table and the figure."""

import json
import math
import re
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from amd_plugin.errors import RunError
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe.loading import load
from amd_plugin.rewards.builtin.classifier import ClassifierReward
from tests.helpers.documentation import ROOT, script
from tests.helpers.recipes import TINY


@pytest.fixture(scope="module")
def frontier():
    return script("benchmarks/frontier.py")


@pytest.fixture(scope="module")
def plane(frontier):
    plugins = get_plugin_manager()
    return frontier.Plane(load("modes2d", plugins), plugins)  # whose classifier other tests train too


def test_the_frontier_starts_at_the_teacher_and_rises(plane):
    points = [plane.frontier(tilt) for tilt in (0.0, 0.5, 1.0, 2.0)]
    assert points[0].nats == pytest.approx(0, abs=1e-9)
    for low, high in pairwise(points):
        assert high.nats > low.nats and high.reward > low.reward and high.precision > low.precision


def test_exact_samples_lie_on_the_frontier(plane):
    draws = torch.Generator().manual_seed(0)
    for tilt in (0.0, 1.0):
        exact, estimate = plane.frontier(tilt), plane.of_samples(*plane.draw(plane.tilted(tilt), 10_000, draws))
        assert estimate.nats == pytest.approx(exact.nats, abs=0.02)
        assert estimate.reward == pytest.approx(exact.reward, abs=0.03)
        assert estimate.precision == pytest.approx(exact.precision, abs=0.01)
        assert estimate.tv < 0.06 and abs(estimate.below) < 0.07  # near p the frontier is steep
        assert plane.tilt_of(exact.nats) == pytest.approx(tilt, abs=0.001)


@pytest.mark.parametrize("tilt", [0.09, 0.35, 1.4, 6.0, 50.0, 400.0])
def test_the_frontier_is_known_at_every_lambda(plane, tilt):
    """Between the lambdas of the table too, and beyond the last of them."""
    exact = plane.frontier(tilt)
    assert plane.frontier(plane.tilt_of(exact.nats)).reward == pytest.approx(exact.reward, abs=1e-6)


def test_no_distribution_lies_above_the_frontier(plane):
    """Not even one that gathers the mass of every bin at its best point, which costs no divergence between bins."""
    scores, _ = plane._judged(
        plane._points.repeat(plane.task.num_classes, 1), plane.task.balanced_labels(plane._density.numel())
    )
    places = plane._bins[:, plane._place]
    for tilt in (0.25, 1.0, 4.0):
        own = (plane._density.log() + tilt * scores.reshape(places.shape)).softmax(
            1
        )  # p exp(lambda r) of the points' own rewards
        best = scores.reshape(places.shape).masked_fill(own == 0, -99.0)
        top = torch.full_like(plane._masses, -99.0).scatter_reduce(1, places, best, "amax")
        gathered = torch.where(best == top.gather(1, places), plane._in_bins(own).gather(1, places), 0.0)
        for density in (own, gathered / gathered.sum(1, keepdim=True)):
            masses = plane._in_bins(density)
            reward = float((masses * plane._scores).sum(1).mean())
            assert reward <= plane.frontier(plane.tilt_of(plane._nats(masses))).reward + 1e-6


def test_beyond_what_a_reward_can_tell_apart_the_frontier_has_the_highest_reward(plane):
    highest = plane.frontier(plane.tilt_of(1e6)).reward
    assert plane.frontier(2.0**12).reward <= highest <= math.log(1.01)


def test_each_seed_has_the_frontier_of_its_own_reward(frontier, plugins, plane):
    own = frontier.Plane(load("modes2d", plugins, ("train.seed=1",)), plugins)
    assert own.frontier(1.0).reward != plane.frontier(1.0).reward
    doubled = frontier.Plane(load("modes2d", plugins, ('rewards=[{"name": "classifier", "weight": 2.0}]',)), plugins)
    assert doubled.frontier(0.5).reward == pytest.approx(2 * plane.frontier(1.0).reward, abs=1e-4)


def test_a_reward_that_fails_in_the_plane_is_named(frontier, plugins, monkeypatch):
    monkeypatch.setattr(ClassifierReward, "__call__", lambda *given: 1 / 0)
    with pytest.raises(RunError, match="'classifier' failed in the plane: ZeroDivisionError"):
        frontier.Plane(load("modes2d", plugins), plugins)


def test_the_distance_from_the_frontier_is_that_of_another_distribution_of_equal_divergence(plane):
    """Teacher and tilted teacher mixed half and half: less divergence than the tilted one, and off the frontier."""
    draws = torch.Generator().manual_seed(0)
    pairs = [plane.draw(plane.tilted(tilt), 20_000, draws) for tilt in (0.0, 8.0)]
    mixed = plane.of_samples(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
    floor = plane.of_samples(*plane.draw(plane.tilted(plane.tilt_of(mixed.nats)), 40_000, draws)).tv
    assert mixed.tv > floor + 0.05


def test_the_teachers_data_have_the_teachers_density(plane):
    points, labels = plane.task.training_data(80_000, torch.Generator().manual_seed(0))
    assert plane.of_samples(points, labels).nats == pytest.approx(0, abs=0.02)


def test_every_objective_has_its_curve(frontier, plugins):
    tried = {arm.objective for curve in frontier.arms().values() for arm in curve}
    assert tried == set(plugins.objectives()) - {"decoupled_dmd", "dmd2"}, "as to rewards, these two are dmd"
    for curve in frontier.arms().values():
        for arm in curve:
            assert not set(load("modes2d", plugins, (*frontier.SETTINGS, *arm.overrides), arm.objective).unused_options) & {
                key.removeprefix("objective.") for key in arm.keys
            }, arm.name


def test_a_run_is_measured_continued_and_drawn(frontier, tmp_path, monkeypatch, forked_workers):
    monkeypatch.setattr(frontier, "CURVES", {name: frontier.CURVES[name] for name in ("kl", "best_of_k")})
    monkeypatch.setitem(frontier.CURVES, "kl", ("amd", "kl", (0.5,), ()))
    tiny = (*TINY, "train.max_steps=2", "evaluate.samples=160")
    lines = Console(file=open(tmp_path / "lines", "w"))
    content = frontier.run(["dmd", "kl"], [0], tiny, tmp_path, 1, lines)
    assert content["curves"].keys() == {"dmd", "kl"} and content == json.loads((tmp_path / "frontier.json").read_text())
    weights = tmp_path / "arms" / "dmd" / "seed-0" / "samples" / "latest.safetensors"
    before = weights.stat().st_mtime_ns
    again = frontier.run(["dmd", "kl"], [0], tiny, tmp_path, 1, lines)
    assert again == content and weights.stat().st_mtime_ns == before, "what is there is not trained again"
    assert "kl@0.5" in frontier.table(content) and "frontier, lambda 1 " in frontier.table(content)
    assert content["scored"] == {"dmd": 0, "kl@0.5": 2 * 16}, "the turns of a cycle share the samples of both rungs"
    frontier.figure(content, tmp_path / "frontier.svg")
    assert "p exp(lambda r)" in (tmp_path / "frontier.svg").read_text()


def test_the_docs_have_the_committed_numbers(frontier, tmp_path):
    """The full table, the figure's words, and the rows of the page: nats, reward, distance, precision, scores."""
    content = json.loads((ROOT / "docs" / "results" / "frontier.json").read_text())
    assert set(content["curves"]) == set(frontier.arms())
    assert (ROOT / "docs" / "results" / "frontier.md").read_text().endswith(frontier.table(content) + "\n")
    frontier.figure(content, tmp_path / "frontier.svg")
    words = [re.findall(r"<text[^>]*>(.*?)</text>", path.read_text(), re.DOTALL)
             for path in (tmp_path / "frontier.svg", ROOT / "docs" / "images" / "frontier.svg")]  # fmt: skip
    assert words[0] == words[1] and len(words[0]) > 20
    full = {row.split(" | ")[0].strip("| "): row for row in frontier.table(content).splitlines()}
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    row = r"^\| `(\w+)(?:`, `\w+)?(?:: ([\w.]+))?` \| ([.\d]+) \| (-[.\d]+) ± .* \| ([.\d]+) \| ([.\d]+) \| (\d+) \|$"
    shown = re.findall(row, page, re.MULTILINE)
    assert len(shown) == 14
    for objective, strength, *numbers in shown:
        curve = "advantage_guidance_auto" if strength == "auto" else {"best_of": "best_of_k"}.get(objective, objective)
        cells = [cell.split(" ")[0] for cell in full[f"{curve}@{strength}" if strength else curve].strip("| ").split(" | ")[1:]]
        of_table = [float(cells[column]) for column in (0, 1, 2, 4, 6)]
        assert [float(number) for number in numbers] == pytest.approx(of_table, abs=0.0051), (objective, strength)
