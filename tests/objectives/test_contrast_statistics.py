"""What is measured of the contrast, on distributions whose contrast is known, and the scale that follows from it."""

import pytest
import torch

from amd_plugin import AMDObjective, Signals
from amd_plugin.maths.advantage_guidance import KAPPA
from amd_plugin.maths.operators import dmd
from amd_plugin.objectives.contrast_statistics import (
    LARGEST,
    NATS,
    RATIO,
    REST,
    ContrastStatistics,
    automatic_scale,
    confidence,
    evidence_by_zone,
    ratio,
    reliability,
    scale_for,
    tilt,
)  # fmt: skip

SHIFT, D = 0.3, 32


def turn(seed, informative=True, length=1.0, batch=64, lead=0.0):
    """Signals of Gaussian samples whose mean is SHIFT apart for success and failure, and a contrast `length` times as long.

    At this noise level x_t says nothing, so the posterior means are the two means. `lead` tilts the student along the contrast.
    """
    draws = torch.Generator().manual_seed(seed)
    axis = torch.zeros(D)
    axis[0] = 1.0
    y = torch.where(torch.rand(batch, generator=draws) < 0.5, 1.0, -1.0)
    x0 = torch.randn(batch, D, generator=draws) + (y[:, None] * SHIFT / 2 * axis if informative else 0)
    good, bad = (torch.zeros(batch, D) + sign * length * SHIFT / 2 * axis for sign in (1, -1))
    fake = torch.zeros(batch, D)
    real = fake - lead / 2 * (good - bad) + 0.5 * torch.randn(batch, D, generator=draws)
    sigma = torch.rand(batch, generator=draws)
    return Signals(x0, real, None, fake, sigma, y / KAPPA, fake_bad=bad, fake_good=good)


def measured(turns, split=1, **options):
    statistics = ContrastStatistics()
    for seed in range(turns):
        signals = turn(seed, **options)
        for part in range(split):
            rows = slice(part * 64 // split, (part + 1) * 64 // split)
            micro = Signals(*(value if value is None else value[rows] for value in signals))
            statistics.update(dmd()(micro._replace(batch_advantage=signals.advantage)))
        statistics.finish_turn()
    return statistics.running


def test_a_calibrated_contrast_is_reliable_and_a_longer_one_less_so():
    assert reliability(measured(400).sum(0)).item() == pytest.approx(1.0, abs=0.1)
    assert reliability(measured(400, length=4.0).sum(0)).item() == pytest.approx(0.25, abs=0.05)
    assert confidence(measured(400).sum(0)) > 0.9


def test_a_reward_that_says_nothing_has_hardly_any_confidence_and_an_inverted_contrast_none():
    statistics, pushed = ContrastStatistics(), []
    for seed in range(600):
        statistics.update(dmd()(turn(seed, informative=False, length=0.2)))
        statistics.finish_turn()
        sums = statistics.running.sum(0)
        pushed.append(float(automatic_scale(sums, torch.tensor(LARGEST), LARGEST) * ratio(sums)))
    assert sum(pushed) / len(pushed) < 0.05 * RATIO, "noise of the contrast is not amplified"
    inverted = measured(100, length=-1.0)
    assert reliability(inverted.sum(0)) < 0 and automatic_scale(inverted.sum(0), torch.tensor(5.0)) == 0


def test_the_tilt_is_the_scale_at_which_the_student_rests():
    assert tilt(measured(200, lead=3.0).sum(0)).item() == pytest.approx(3.0, abs=0.3)
    assert tilt(measured(200).sum(0)).item() == pytest.approx(0.0, abs=0.3)


def test_samples_that_fail_have_less_evidence_of_success_and_noise_has_none():
    signals = turn(0, batch=4096)
    failed = signals.advantage < 0
    evidence = evidence_by_zone(signals, failed)
    for level in ("low", "middle", "high"):
        assert evidence[f"contrast_evidence_outside/{level}"] - evidence[f"contrast_evidence_zone/{level}"] > 0.03
    without = evidence_by_zone(turn(0, informative=False, batch=4096), failed)
    assert all(abs(value) < 0.03 for value in without.values()) and len(without) == 6
    assert evidence_by_zone(signals._replace(fake_good=None, fake_bad=None), failed) == {}


def test_bands_add_up_and_nothing_depends_on_how_a_batch_is_split():
    whole, parts = measured(20), measured(20, split=8)
    torch.testing.assert_close(whole, parts)
    assert (whole[:, 1] > 0).all()


def test_nothing_depends_on_the_number_of_processes():
    signals = turn(0)
    joined, shared = ContrastStatistics(), []
    joined.update(dmd()(signals))
    for part in range(4):
        rows = slice(part * 16, part * 16 + 16)
        process = ContrastStatistics()
        micro = Signals(*(value if value is None else value[rows] for value in signals))
        process.update(dmd()(micro._replace(batch_advantage=signals.advantage)))
        shared.append(process)
    mean = torch.stack([process.turn for process in shared]).mean(0)
    for statistics in (joined, *shared):
        if statistics is not joined:
            statistics.turn.copy_(mean)
        statistics.finish_turn()
        torch.testing.assert_close(statistics.running, joined.running)


def test_the_scale_keeps_the_ratio_until_the_student_is_tilted():
    behind, tilted = measured(200, lead=-1.0).sum(0), measured(200, lead=2.0).sum(0)
    push = confidence(behind) * RATIO / ratio(behind)
    assert automatic_scale(behind, torch.tensor(5.0)).item() == pytest.approx(push.item(), rel=1e-6)
    partly = measured(200, lead=0.5).sum(0)
    held = tilt(partly) + RATIO / ratio(partly)
    assert 0.3 < tilt(partly) < 0.7 and automatic_scale(partly, torch.tensor(50.0), 50.0) == pytest.approx(
        float(held * confidence(partly)), rel=1e-6
    ), "where a student is tilted it would rest at that tilt: what moves it on comes on top"
    assert automatic_scale(tilted, torch.tensor(5.0)).item() == pytest.approx(REST * confidence(tilted).item(), rel=1e-6)
    assert automatic_scale(tilted, torch.tensor(0.1)).item() == pytest.approx(0.1 * confidence(tilted).item(), rel=1e-6)


def test_the_budget_is_met_within_groups():
    a = torch.tensor([-1.0, 0.2, 0.3, 0.5, -0.6, 0.0, 0.1, 0.5])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    gamma = scale_for(a, groups)
    divergences = []
    for group in (0, 1):
        success = torch.log((1 + KAPPA * a[groups == group]) / 2).double()
        tilted = (gamma * success).softmax(0)
        divergences.append((tilted * (tilted * 4).log()).sum())
    assert torch.stack(divergences).mean().item() == pytest.approx(NATS, rel=1e-3)
    assert scale_for(torch.zeros(4), torch.zeros(4)) == pytest.approx(LARGEST, rel=1e-3)
    assert scale_for(a, groups, nats=0.1) < gamma


def test_an_objective_measures_logs_and_restores_its_contrast():
    objective = AMDObjective(1.0, sharpening=0, advantage_guidance="auto", unit=0)
    assert objective.needs.fake_score_outcome and objective.needs.reward and objective.needs.group_size == 2
    groups = torch.arange(64) // 8
    for seed in range(60):
        signals = turn(seed)
        a = objective.advantage(signals.advantage, groups)
        metrics = objective.student_loss(signals._replace(advantage=a)).metrics
    assert objective.gamma > 0 and metrics["contrast_confidence"] > 0
    assert {"contrast_ratio/low", "contrast_reliability/high", "contrast_tilt/middle", "advantage_guidance"} <= set(metrics)
    other = AMDObjective(1.0, sharpening=0, advantage_guidance="auto", unit=0)
    under_way = [sums.clone() for sums in objective.shared_sums]
    other.load_state_dict(objective.state_dict())
    assert len(objective.shared_sums) == len(under_way) > 0, "saving has ended the turn, on the one process that saves"
    assert other.state_dict() == objective.state_dict()
    for one in (objective, other):
        one.advantage(signals.advantage, groups)  # the next turn, before which nothing reads the scale
    assert other.gamma == objective.gamma


def test_off_it_needs_nothing():
    assert not AMDObjective(1.0, advantage_guidance=0).needs.fake_score_outcome
    assert not AMDObjective(1.0, advantage_guidance=0, sharpening=0, strength=0).needs.reward
