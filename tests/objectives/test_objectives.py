"""The objectives: interchangeable, bit-equal where they must be, stateful only where they say so."""

import pytest
import torch

from amd_plugin import AMDObjective, DMDObjective, Signals
from amd_plugin.errors import InputError, OptionError
from amd_plugin.objectives.dmd import decoupled_dmd
from amd_plugin.objectives.reward_statistics import RewardStatistics


def signals(advantage=None, batch=8, seed=0):
    draws = torch.Generator().manual_seed(seed)
    x0, cond, uncond, fake = (torch.randn(batch, 1, 4, 4, generator=draws) for _ in range(4))
    return Signals(x0.requires_grad_(), cond, uncond, fake, torch.rand(batch, generator=draws), advantage)


@pytest.mark.parametrize("w", [1.0, 3.5])
@pytest.mark.parametrize("normalizer", ["per_sample", "global"])
def test_amd_switched_off_is_dmd_to_the_bit(w, normalizer):
    dmd = DMDObjective(w, normalizer=normalizer)
    amd = AMDObjective(w, normalizer=normalizer, strength=0.0, sharpening=0.0)
    assert not amd.needs.reward
    s, a = signals(), torch.linspace(-1, 1, 8)
    assert torch.equal(amd.student_loss(s._replace(advantage=a)).loss, dmd.student_loss(s).loss)
    prediction, target = torch.randn(8, 3), torch.randn(8, 3)
    off, plain = amd.fake_score_loss(prediction, target, amd.sharpening_weights(a)), dmd.fake_score_loss(prediction, target)
    assert torch.equal(off.loss, plain.loss)


def test_loss_is_the_mean_of_per_sample():
    for objective in (DMDObjective(2.0), AMDObjective(2.0), decoupled_dmd(2.0)):
        s = signals(torch.linspace(-1, 1, 8))
        output = objective.student_loss(s._replace(guide_cond=s.real_cond, guide_uncond=s.real_uncond))
        assert output.loss.shape == () and output.per_sample.shape == (8,)
        torch.testing.assert_close(output.loss.detach(), output.per_sample.mean())
        assert all(value.shape == () for value in output.metrics.values())


def test_the_side_follows_guidance_unless_it_is_named():
    assert AMDObjective(1.0).side == "both" and AMDObjective(1.5).side == "negative"
    assert AMDObjective(1.5, side="both").side == "both"


def test_failing_samples_pull_harder_and_the_fake_learns_them_more():
    objective = AMDObjective(1.0, strength=0.5, side="negative")
    a = torch.tensor([-1.0, 0, 0, 0, 0, 0, 0, 1.0])
    plain, moved = DMDObjective(1.0).student_loss(signals()).per_sample, objective.student_loss(signals(a)).per_sample
    assert moved[0] > plain[0]
    assert torch.equal(moved[1:], plain[1:])
    w = objective.sharpening_weights(a)
    assert w[0] > w[1] > w[7]


def test_the_zone_is_measured():
    metrics = (
        AMDObjective(1.0, strength=0.5, side="negative")
        .student_loss(signals(torch.tensor([-1.0, -0.6, -0.4, 0, 0, 0.2, 0.4, 1.0])))
        .metrics
    )
    assert metrics["zone_share"] == 0.25
    assert metrics["beta"] > 1 > metrics["alpha"]


def test_failed_rewards_are_neutral_and_counted():
    objective = AMDObjective()
    reward = torch.tensor([1.0, float("nan"), 3.0, float("inf")])
    a = objective.advantage(reward, torch.zeros(4, dtype=torch.long))
    assert a[1] == 0 == a[3] and torch.isfinite(a).all()
    assert objective.state_dict()["failed"] == 2
    output = objective.student_loss(signals(a.repeat(2)))
    assert torch.isfinite(output.loss) and output.metrics["failed_rewards"] == 0.5


def test_the_floor_follows_the_usual_spread():
    objective = AMDObjective(std_floor=1.0)
    groups = torch.zeros(4, dtype=torch.long)
    for _ in range(50):
        objective.advantage(torch.tensor([0.0, 1.0, 2.0, 3.0]), groups)
    jitter = torch.tensor([1.0, 1.001, 0.999, 1.0])
    assert objective.advantage(jitter, groups).abs().max() < 0.01
    assert AMDObjective(std_floor=0.0).advantage(jitter, groups).abs().max() > 0.9


def test_state_goes_round():
    one, two = AMDObjective(), AMDObjective()
    groups = torch.arange(8) // 4
    for seed in range(5):
        one.advantage(torch.randn(8, generator=torch.Generator().manual_seed(seed)), groups)
    two.load_state_dict(one.state_dict())
    reward = torch.randn(8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(one.advantage(reward, groups), two.advantage(reward, groups))
    assert one.state_dict() == two.state_dict()
    with pytest.raises(InputError, match="another objective"):
        DMDObjective().load_state_dict(one.state_dict())


def test_a_schedule_factor_turns_amd_down():
    objective = AMDObjective(2.0)
    a = torch.linspace(-1, 1, 8)
    objective.schedule_factor = 0.0
    assert torch.equal(objective.student_loss(signals(a)).loss, DMDObjective(2.0).student_loss(signals()).loss)
    assert torch.equal(objective.sharpening_weights(a), torch.ones(8))


def test_shapes_are_checked_at_the_boundary():
    objective, s = AMDObjective(2.0), signals()
    for broken, name in (
        (s._replace(fake=s.fake[:, :, :2]), "fake"), (s._replace(advantage=torch.zeros(3)), "advantage"),
        (s._replace(real_uncond=None), "real_uncond"), (s._replace(guide_cond=s.fake), "guide_cond"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            objective.student_loss(broken)
    with pytest.raises(ValueError, match=r"guide_cond: needed with guidance_sigma \(0\.02, 0\.98\)"):
        decoupled_dmd(2.0).student_loss(s)
    decoupled_dmd(1.0).student_loss(s)  # without guidance there is nothing to draw
    with pytest.raises(ValueError, match="target"):
        objective.fake_score_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="weight"):
        objective.fake_score_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"strength": 1.0}, "strength"), ({"strength": -0.1}, "strength"), ({"sharpening": -1.0}, "sharpening"),
        ({"sharpening": 1.5, "sharpening_kind": "linear"}, "sharpening"), ({"sharpness": 1.0}, "sharpness"),
        ({"std_floor": float("nan")}, "std_floor"),
        ({"guidance_scale": float("inf")}, "guidance_scale"), ({"guidance_sigma": (0.5, 0.5)}, "guidance_sigma"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(options, name):
    with pytest.raises(OptionError) as caught:
        AMDObjective(**options)
    assert caught.value.option == name


def test_one_reward_far_off_does_not_mute_the_others():
    """The unit follows from a running mean of spreads, which forgets slowly."""
    statistics, groups, draws = RewardStatistics(), torch.arange(64) // 8, torch.Generator().manual_seed(0)
    for batch in range(101):
        reward = torch.randn(64, generator=draws)
        if batch == 100:
            before = float(statistics.spread())
            reward[5] = -1e4
        statistics.update(reward, groups)
    assert before < float(statistics.spread()) < 1.15 * before
    for _ in range(200):  # rewards of another size are followed all the same
        statistics.update(1000 * torch.randn(64, generator=draws), groups)
    assert float(statistics.spread()) > 500
