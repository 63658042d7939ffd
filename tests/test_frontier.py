"""The frontier benchmark at a tiny size: exact densities, estimates of them, and a run from arms to the table and the figure."""

import json
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from amd_plugin.tasks.modes2d import Modes2D
from tests.helpers.documentation import script
from tests.helpers.recipes import TINY


@pytest.fixture(scope="module")
def frontier():
    return script("benchmarks/frontier.py")


@pytest.fixture(scope="module")
def plane(frontier):
    return frontier.Plane(Modes2D())  # whose classifier other tests train too


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
        assert estimate.tv < 0.06 and plane.tilt_of(exact.nats) == pytest.approx(tilt, abs=0.001)


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
    from amd_plugin.recipe.loading import load

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
    frontier.figure(content, tmp_path / "frontier.svg")
    assert "p exp(lambda r)" in (tmp_path / "frontier.svg").read_text()
