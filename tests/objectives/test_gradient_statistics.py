"""The gradient of a reward at failing samples: as long beside matching as asked for, in whatever unit and dimension."""

import pytest
import torch

from amd_plugin import AMDObjective, Signals
from amd_plugin.maths.advantage_guidance import failure_probability
from amd_plugin.objectives.gradient_statistics import RATIO, GradientStatistics

GROUPS = torch.arange(8) // 4


def turn(objective, factor=1.0, dimensions=3, seed=0, reward=True):
    """The loss of a student turn, and x0; all samples have matching directions and reward gradients of the same length."""
    draws = torch.Generator().manual_seed(seed)
    x0 = torch.zeros(8, dimensions, requires_grad=True)
    advantage = objective.advantage(factor * torch.randn(8, generator=draws), GROUPS)
    signs = (torch.arange(8 * dimensions) % 2 * 2.0 - 1).reshape(8, dimensions)
    signals = Signals(x0, real_cond=signs, real_uncond=None, fake=torch.zeros_like(signs), advantage=advantage)
    return objective.student_loss(signals._replace(reward=factor * x0.mean(1) if reward else None)), x0


def gradient_beside(objective, without, **how):
    """What the second turn adds to the gradient of x0 [8, D], beside the length of that of matching."""
    for each in (objective, without):
        turn(each, **how)
    (climbing, x0), (plain, same) = turn(objective, **how), turn(without, **how)
    [base] = torch.autograd.grad(plain.loss, same)
    return (torch.autograd.grad(climbing.loss, x0)[0] - base) / base.norm(dim=1).mean(), climbing.metrics


@pytest.mark.parametrize("how", [{}, {"factor": 100.0}, {"dimensions": 300}])
def test_it_is_as_long_as_asked_for_in_any_unit_and_dimension(how):
    objective = AMDObjective(sharpening=0.0, advantage_gradient=0.5)
    added, metrics = gradient_beside(objective, AMDObjective(sharpening=0.0), **how)
    assert added.norm(dim=1).mean().item() == pytest.approx(0.5, rel=1e-4)
    assert (added < 0).all(), "a loss that falls where the reward rises"
    assert 0.5 <= metrics["reward_gradient_ratio"].item() < 1.5, "a root mean square, of lengths that differ"


def test_samples_that_succeed_stay_where_they_are():
    objective = AMDObjective(sharpening=0.0, advantage_gradient=0.5)
    added, _ = gradient_beside(objective, AMDObjective(sharpening=0.0))
    advantage = AMDObjective(sharpening=0.0, advantage_gradient=0.5).advantage(
        torch.randn(8, generator=torch.Generator().manual_seed(0)), GROUPS
    )
    lengths = added.norm(dim=1)
    torch.testing.assert_close(lengths / lengths.sum(), failure_probability(advantage) / failure_probability(advantage).sum())


def test_the_first_turn_measures_and_does_not_push():
    (first, x0), (plain, same) = (
        turn(AMDObjective(**options)) for options in ({"advantage_gradient": 0.5}, {"advantage_gradient": 0.0, "strength": 0.0})
    )
    assert torch.equal(torch.autograd.grad(first.loss, x0)[0], torch.autograd.grad(plain.loss, same)[0])


def test_auto_is_a_length_of_its_own_and_nothing_without_a_gradient():
    auto = AMDObjective(sharpening=0.0, advantage_gradient="auto")
    assert auto.needs.reward_gradient == "if offered" and auto.needs.reward and auto.needs.group_size == 2
    added, _ = gradient_beside(auto, AMDObjective(sharpening=0.0))
    assert added.norm(dim=1).mean().item() == pytest.approx(RATIO, rel=1e-4)
    blind, plain = AMDObjective(sharpening=0.0, advantage_gradient="auto"), AMDObjective(sharpening=0.0)
    for _ in range(2):
        (one, x0), (two, same) = turn(blind, reward=False), turn(plain, reward=False)
    assert torch.equal(torch.autograd.grad(one.loss, x0)[0], torch.autograd.grad(two.loss, same)[0])
    assert "failed_gradients" not in one.metrics
    with pytest.raises(ValueError, match="differentiable reward"):
        turn(AMDObjective(advantage_gradient=0.5), reward=False)


def test_both_options_add_up():
    options = {"advantage_gradient": 0.5}, {"reward_gradient": 0.25}, {"advantage_gradient": 0.5, "reward_gradient": 0.25}
    one, other, both = (
        gradient_beside(AMDObjective(sharpening=0.0, **each), AMDObjective(sharpening=0.0))[0] for each in options
    )
    torch.testing.assert_close(both, one + other)


def test_a_state_has_the_turn_under_way():
    one, two = (AMDObjective(advantage_gradient=0.5) for _ in range(2))
    turn(one), turn(one, seed=1)
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    (there, x0), (here, same) = turn(one, seed=2), turn(two, seed=2)
    assert torch.equal(torch.autograd.grad(there.loss, x0)[0], torch.autograd.grad(here.loss, same)[0])
    assert "gradient" not in AMDObjective().state_dict()


def test_the_sums_of_two_processes_are_those_of_their_joined_batch():
    draws = torch.Generator().manual_seed(0)
    x0 = torch.randn(8, 3, generator=draws).requires_grad_()
    reward, direction = x0.square().sum(1), torch.randn(8, 3, generator=draws)
    joined, *parts = (GradientStatistics() for _ in range(3))
    joined.update(reward, x0, direction)
    for part, rows in zip(parts, (slice(0, 2), slice(2, 8)), strict=True):
        part.update(
            reward[rows], x0, torch.where(torch.arange(8)[:, None].eq(torch.arange(8)[rows]).any(1, True), direction, 0)
        )
    mean = (parts[0].turn[:2] + parts[1].turn[:2]) / 2
    torch.testing.assert_close(mean, joined.turn[:2] / 2)


def test_values_that_are_not_finite_count_as_none():
    x0 = torch.ones(4, 3, requires_grad=True)
    measured, broken = GradientStatistics(), GradientStatistics()
    direction = torch.ones(4, 3)
    measured.update(x0[:3].sum(1), x0, direction)
    broken.update(x0.sum(1), x0, torch.where(torch.arange(4)[:, None] == 3, torch.nan, direction))
    for each in (measured, broken):
        each.finish_turn()
    assert broken.weight(1.0) == pytest.approx(3**0.5 / 3 / 3**0.5)
    broken.update(torch.ones(4), x0, direction)
    assert not broken.has_turn, "a reward without a graph"
    assert GradientStatistics().weight(1.0) == 0
