"""Option `kl` of AMD: the tilt follows from the reward's own spread and a budget in nats."""

import pytest
import torch

from amd_plugin import AMDObjective, DMDObjective
from amd_plugin.errors import OptionError
from amd_plugin.maths.kl_budget import divergence_of
from amd_plugin.objectives.kl_budget import KLBudget
from tests.objectives.test_objectives import signals

GROUPS = torch.arange(64) // 8


def rewards(seed):
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


def weights_of(scale=1.0, shift=0.0, batches=5, **options):
    """An objective after some batches, and the weights of the last."""
    objective = AMDObjective(**{"kl": 0.5, **options})
    for seed in range(batches):
        a = objective.advantage(scale * rewards(seed) + shift, GROUPS)
    return objective, a, objective.sharpening_weights(a)


def test_the_weights_are_the_tilt_that_spends_the_budget():
    objective, a, weights = weights_of(batches=1)
    assert divergence_of(a, GROUPS, objective.sharpening).item() == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(weights, torch.exp(-objective.sharpening * a) / torch.exp(-objective.sharpening * a).mean())
    assert a.abs().max() < 1, "clipping is rare"


@pytest.mark.parametrize(("scale", "shift"), [(4.0, 0.0), (1e-3, 0.0), (1.0, 30.0), (250.0, -1e4)])
def test_scale_and_shift_of_the_reward_change_nothing(scale, shift):
    torch.testing.assert_close(weights_of(scale, shift)[2], weights_of()[2], rtol=5e-3, atol=5e-3)


def test_the_rewards_own_unit_is_not_asked_and_an_explicit_one_is_kept():
    given = AMDObjective(kl=0.5)
    given.reward_unit = 7.0
    given.advantage(rewards(0), GROUPS)
    assert given.unit == pytest.approx(3 * float(given.statistics.spread())) and given.tolerance == 0
    explicit, a, _ = weights_of(batches=1, unit=2.0, tolerance=0.25)
    assert explicit.unit == 2.0 and explicit.tolerance == 0.25
    assert divergence_of(a, GROUPS, explicit.sharpening).item() == pytest.approx(0.5, rel=1e-4)


def test_a_constant_reward_is_dmd_to_the_bit():
    objective = AMDObjective(2.0, kl=0.5)
    a = objective.advantage(torch.full((64,), 0.3), GROUPS)
    assert not a.any() and objective.sharpening == 0
    assert torch.equal(objective.sharpening_weights(a), torch.ones(64))
    assert torch.equal(objective.student_loss(signals(a[:8])).loss, DMDObjective(2.0).student_loss(signals()).loss)
    _, _, weights = weights_of()
    quiet = weights_of()[0]
    before = quiet.sharpening
    assert torch.equal(quiet.sharpening_weights(quiet.advantage(torch.full((64,), 0.3), GROUPS)), torch.ones(64))
    assert quiet.sharpening == before and weights.std() > 0.1


def test_no_budget_is_no_tilt_and_needs_no_reward():
    objective = AMDObjective(1.0, kl=0.0)
    assert not objective.needs.reward and not objective.needs.fake_score_weight
    assert AMDObjective(kl=0.5).needs.fake_score_weight and AMDObjective(kl=0.0, advantage_guidance="auto").gamma == 0
    assert not AMDObjective(kl=0.5, sharpening=0.0).needs.fake_score_weight


def test_failed_rewards_are_left_out_of_the_budget():
    objective = AMDObjective(kl=0.5)
    reward = rewards(0)
    reward[::5] = torch.nan
    a = objective.advantage(reward, GROUPS)
    answered = torch.isfinite(reward)
    assert not a[~answered].any()
    assert divergence_of(a[answered], GROUPS[answered], objective.sharpening).item() == pytest.approx(0.5, rel=1e-4)
    assert AMDObjective(kl=0.5).advantage(torch.full((64,), torch.nan), GROUPS).abs().sum() == 0


def test_state_goes_round_and_rungs_have_tilts_of_their_own():
    one, two = AMDObjective(kl=0.5), AMDObjective(kl=0.5)
    for seed in range(3):
        one.advantage(rewards(seed), GROUPS, rung=0)
        one.advantage(torch.where(rewards(seed) > 1.5, -4.0, 0.0), GROUPS, rung=1)
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    tilts = []
    for rung in (0, 1):
        assert torch.equal(one.advantage(rewards(9), GROUPS, rung), two.advantage(rewards(9), GROUPS, rung))
        assert one.sharpening == two.sharpening
        tilts.append(one.sharpening)
    assert tilts[0] != tilts[1]


def test_each_sample_has_the_tilt_of_its_own_rung():
    """Harvested samples of all rungs are in one batch; they had the tilt of the last rung."""
    objective, rungs = AMDObjective(kl=0.5), torch.arange(2).repeat_interleave(64)
    narrow, wide = (objective.advantage(scale * rewards(0), GROUPS, rung) for rung, scale in enumerate((1.0, 9.0)))
    objective.advantage(torch.where(rewards(1) > 1.5, -4.0, 0.0), GROUPS, 1)
    tilts = [objective._kl.tilt(rung) for rung in (0, 1)]
    assert tilts[0] != tilts[1]
    expected = torch.cat([torch.exp(-tilt * a) for tilt, a in zip(tilts, (narrow, wide), strict=True)])
    joined = torch.cat((narrow, wide))
    torch.testing.assert_close(objective.sharpening_weights(joined, rungs=rungs), expected / expected.mean())
    assert torch.equal(objective.sharpening_weights(wide, rungs=torch.ones(64).long()), objective.sharpening_weights(wide))
    assert objective.needs.fake_score_rung and not AMDObjective().needs.fake_score_rung


def test_guidance_that_sets_itself_shares_the_budget():
    alone, both = AMDObjective(kl=0.5), AMDObjective(kl=0.5, advantage_guidance="auto")
    both._contrast.running += 1.0
    for objective in (alone, both):
        a = objective.advantage(rewards(0), GROUPS)
    assert divergence_of(a, GROUPS, both.sharpening).item() == pytest.approx(0.125, rel=1e-4)
    assert both.sharpening < alone.sharpening and 0 < both._rest.tilt()
    assert both.state_dict()["kl"]["updates"] == {"0": 1}


def test_the_tilt_is_logged_and_a_hacked_reward_has_its_lever():
    objective, a, _ = weights_of()
    assert objective.student_loss(signals(a[:8])).metrics["sharpening"] == pytest.approx(objective.sharpening)
    assert objective.reward_levers["kl"] == 0.5 and "sharpening" not in objective.reward_levers
    assert AMDObjective(1.25, kl=0.5).sharpening_sigma is None


def test_a_budget_needs_the_exact_tilt():
    with pytest.raises(OptionError) as caught:
        AMDObjective(kl=0.5, sharpening_kind="linear")
    assert caught.value.option == "kl"


def test_the_running_tilt_is_a_mean_at_first():
    budget = KLBudget(0.5)
    tilts = []
    for seed in range(4):
        lone = KLBudget(0.5)
        lone.update(rewards(seed), GROUPS)
        tilts.append(lone.tilt())
        budget.update(rewards(seed), GROUPS)
    assert budget.tilt() == pytest.approx(sum(tilts) / 4)
