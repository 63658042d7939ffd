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
    log_success,
    ratio,
    reliability,
    tilt,
)  # fmt: skip
from amd_plugin.objectives.kl_budget import KLBudget

SHIFT, D = 0.3, 32


def turn(seed, informative=True, length=1.0, batch=64, lead=0.0, dimensions=D, shift=SHIFT, failed=0.5):
    """Signals of Gaussian samples whose mean is `shift` apart for success and failure, and a contrast `length` times as long.

    At this noise level x_t says nothing, so the posterior means are the two means. `lead` tilts the student along the contrast,
    and a share of `failed` samples has outcomes that are certain.
    """
    draws = torch.Generator().manual_seed(seed)
    axis = torch.zeros(dimensions)
    axis[0] = 1.0
    y = torch.where(torch.rand(batch, generator=draws) < 1 - failed, 1.0, -1.0)
    x0 = torch.randn(batch, dimensions, generator=draws) + (y[:, None] * shift / 2 * axis if informative else 0)
    good, bad = (torch.zeros(batch, dimensions) + sign * length * shift / 2 * axis for sign in (1, -1))
    fake = torch.zeros(batch, dimensions)
    real = fake - lead * failed * (good - bad) + 0.5 * torch.randn(batch, dimensions, generator=draws)
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


@pytest.mark.parametrize("dimensions", [2, 4, 64])
def test_reliability_is_the_same_in_few_dimensions_and_many(dimensions):
    """In the plane half of a sample's lead goes into the length that it is divided by."""
    sums = measured(300, dimensions=dimensions, shift=1.0).sum(0)
    assert reliability(sums).item() == pytest.approx(1.0, abs=0.12)


def test_the_tilt_is_measured_with_the_share_that_guidance_moves():
    """Few failures are guided, so the mean of P(bad | a) is small; the student rests where that mean says."""
    for failed in (0.1, 0.5, 0.8):
        assert tilt(measured(300, lead=2.0, failed=failed).sum(0)).item() == pytest.approx(2.0, abs=0.5), failed


def test_a_sample_that_is_not_finite_counts_as_none():
    statistics, signals = ContrastStatistics(), turn(0)
    statistics.update(dmd()(signals))
    statistics.finish_turn()
    before = statistics.running.clone()
    broken = signals._replace(fake_good=signals.fake_good.clone())
    broken.fake_good[3, 5] = float("nan")
    statistics.update(dmd()(broken))
    statistics.finish_turn()
    assert statistics.running.isfinite().all() and (statistics.running[:, 0] > before[:, 0]).all()
    statistics.update(dmd()(signals._replace(fake_good=torch.full_like(signals.fake_good, float("inf")))))
    statistics.finish_turn()
    assert statistics.running.isfinite().all(), "a turn without any sample that counts"


def test_a_reward_that_says_nothing_has_hardly_any_confidence_and_an_inverted_contrast_none():
    statistics, pushed = ContrastStatistics(), []
    for seed in range(600):
        statistics.update(dmd()(turn(seed, informative=False, length=0.2)))
        statistics.finish_turn()
        sums = statistics.running.sum(0)
        pushed.append(float(automatic_scale(sums, LARGEST) * ratio(sums)))
    assert sum(pushed) / len(pushed) < 0.05 * RATIO, "noise of the contrast is not amplified"
    inverted = measured(100, length=-1.0)
    assert reliability(inverted.sum(0)) < 0 and automatic_scale(inverted.sum(0)) == 0


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
    assert automatic_scale(behind).item() == pytest.approx(push.item(), rel=1e-6)
    partly = measured(200, lead=0.5).sum(0)
    held = tilt(partly) + RATIO / ratio(partly)
    assert 0.3 < tilt(partly) < 0.7 and automatic_scale(partly, 50.0) == pytest.approx(
        float(held * confidence(partly)), rel=1e-6
    ), "where a student is tilted it would rest at that tilt: what moves it on comes on top"
    for rest in (REST, 0.1):
        assert automatic_scale(tilted, rest).item() == pytest.approx(rest * confidence(tilted).item(), rel=1e-6)
    assert automatic_scale(behind, 0.0) == 0, "nothing differed yet"
    short = behind.clone()
    short[1:3] *= 1e-4
    assert automatic_scale(short) <= LARGEST


def test_the_scale_of_rest_spends_the_budget_of_a_student_that_is_tilted_already():
    """The teacher of such a student is found by tilting back: its divergence is log mean exp(-gamma s) + gamma mean s."""
    a = torch.tensor([-1.0, 0.2, 0.3, 0.5, -0.6, 0.0, 0.1, 0.5])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    budget = KLBudget(NATS)
    for _ in range(3):
        budget.update(log_success(a), groups)
        budget.update(log_success(torch.zeros(8)), groups)  # says nothing, and so changes nothing
    success, gamma = torch.log((1 + KAPPA * a) / 2).double(), budget.tilt()
    parts = [torch.exp(-gamma * s).mean().log() + gamma * s.mean() for s in (success[groups == 0], success[groups == 1])]
    assert torch.stack(parts).mean().item() == pytest.approx(NATS, rel=1e-6)


@pytest.mark.parametrize("reward", ["constant", "failed", "heavy", "tied", "pairs"])
def test_the_automatic_scale_stays_within_its_rest_whatever_the_reward(reward):
    """Rewards without differences, failed ones, heavy tails, ties and groups of two."""
    draws = torch.Generator().manual_seed(0)
    groups = torch.arange(64) // (2 if reward == "pairs" else 8)
    objective = AMDObjective(1.0, sharpening=1, advantage_guidance="auto", unit=0)
    for seed in range(40):
        signals = turn(seed)
        values = {
            "constant": torch.ones(64),
            "failed": torch.where(torch.arange(64) % 3 == 0, torch.nan, signals.advantage),
            "heavy": signals.advantage * torch.rand(64, generator=draws).pow(-3),
            "tied": signals.advantage.sign(),
            "pairs": signals.advantage,
        }[reward]
        if seed % 7 == 3:
            values = torch.full((64,), torch.nan)  # every reward of a batch has failed
        a = objective.advantage(values, groups)
        objective.outcomes(a, torch.rand(64, generator=draws))
        assert objective.sharpening_weights(a).isfinite().all()
        objective.student_loss(signals._replace(advantage=a))
    objective.advantage(values, groups)
    assert 0 <= objective.gamma <= LARGEST
    if reward != "heavy":  # where a few samples are all that differs
        assert (objective.gamma > 0) == (reward != "constant")
        assert objective._rest.tilt() <= 3, "what a batch without differences would allow is no part of the budget"


def test_nothing_of_a_reward_is_trusted_before_it_was_measured():
    """Sharpening and adaptation wait for the contrast where a host offers outcomes; and after a resumed start, too."""
    a, draws = torch.tensor([-1.0, 1.0]), torch.rand(2)
    objective = AMDObjective(1.0, sharpening=1, advantage_guidance="auto")
    assert not torch.equal(objective.sharpening_weights(a), torch.ones(2)), "a host without outcomes cannot measure"
    objective.outcomes(a, draws)
    assert torch.equal(objective.sharpening_weights(a), torch.ones(2))
    resumed = AMDObjective(1.0, sharpening=1, advantage_guidance="auto")
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed.sharpening_weights(a), torch.ones(2))


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
