"""The rivals as objectives: DMD at strength 0, what they need, and what they say about signals that they are not given."""

import pytest
import torch

from amd_plugin import DMDObjective, Signals, get_plugin_manager, options
from amd_plugin.adapters.host_objective import require_fit
from amd_plugin.adapters.offers import OFFERS
from amd_plugin.contract import objective_problem
from amd_plugin.errors import InputError, OptionError
from amd_plugin.hookspecs import EVERYTHING
from amd_plugin.objectives.rivals.best_of_k import BestOfKObjective
from amd_plugin.objectives.rivals.diffusion_nft import DiffusionNFTObjective
from amd_plugin.objectives.rivals.dp_dmd import DPDMDObjective
from amd_plugin.objectives.rivals.gndm import GNDMObjective
from amd_plugin.objectives.rivals.policy_gradient import PolicyGradientObjective
from amd_plugin.objectives.rivals.re_dmd import ReDMDObjective

REWARDED = {
    PolicyGradientObjective: "policy_weight", DiffusionNFTObjective: "nft_weight", ReDMDObjective: "reward_beta",
    BestOfKObjective: "best_of",
}  # fmt: skip
STRENGTHS = {**REWARDED, GNDMObjective: "group_share", DPDMDObjective: "diversity_weight"}
# What each needs at its default strength that no adapter offers.
ONLY_HERE = {
    PolicyGradientObjective: {"transition_density", "student_steps"}, DiffusionNFTObjective: {"student_prediction"},
    ReDMDObjective: set(), BestOfKObjective: set(), GNDMObjective: {"groups"},
    DPDMDObjective: {"teacher_path", "student_steps"},
}  # fmt: skip


def signals(seed=0, batch=8):
    draws = torch.Generator().manual_seed(seed)
    x0, cond, uncond, fake, student, anchor = (torch.randn(batch, 2, 3, generator=draws) for _ in range(6))
    advantage, density = torch.randn(batch, generator=draws), torch.randn(batch, generator=draws)
    return Signals(
        x0.requires_grad_(), cond, uncond, fake, torch.rand(batch, generator=draws), advantage, groups=torch.arange(batch) // 4,
        log_density=density.requires_grad_(), student=student.requires_grad_(), anchor=anchor,
    )  # fmt: skip


@pytest.mark.parametrize("kind", STRENGTHS)
def test_each_follows_the_contract_and_is_dmd_without_strength(kind):
    assert objective_problem(kind()) == ""
    off, dmd = kind(2.0, **{STRENGTHS[kind]: 1.0 if kind is BestOfKObjective else 0.0}), DMDObjective(2.0)
    assert off.needs == dmd.needs and off.state_dict() == dmd.state_dict()
    assert torch.equal(off.student_loss(signals()).loss, dmd.student_loss(signals()).loss)
    assert torch.equal(off.sharpening_weights(torch.linspace(-1, 1, 8)), torch.ones(8))


@pytest.mark.parametrize("kind", STRENGTHS)
def test_each_is_refused_by_name_where_a_host_cannot_give_what_it_needs(kind):
    objective = kind(2.0)
    assert objective.needs.missing(OFFERS).keys() == ONLY_HERE[kind]
    if objective.needs.reward or not objective.needs.groups:
        require_fit(objective, 2.0, EVERYTHING)
    if ONLY_HERE[kind]:
        with pytest.raises(InputError, match=f"needs.({'|'.join(ONLY_HERE[kind])}): this host does not offer"):
            require_fit(objective, 2.0)


@pytest.mark.parametrize("kind", REWARDED)
def test_a_schedule_can_turn_the_reward_off(kind):
    objective = kind(2.0)
    objective.schedule_factor = 0.0
    assert torch.equal(objective.student_loss(signals()).loss, DMDObjective(2.0).student_loss(signals()).loss)
    assert torch.equal(objective.sharpening_weights(torch.linspace(-0.9, 0.9, 8)), torch.ones(8))
    assert objective.reward_levers[REWARDED[kind]] > 0


@pytest.mark.parametrize("kind", REWARDED)
def test_constant_and_failed_rewards_say_nothing(kind):
    objective, groups = kind(), torch.arange(8) // 4
    assert not objective.advantage(torch.full((8,), 3.0), groups).any()
    reward = torch.tensor([1.0, torch.nan, 3.0, torch.inf, 0.0, 1.0, 2.0, 3.0])
    a = objective.advantage(reward, groups)
    assert a[1] == 0 == a[3] and torch.isfinite(a).all() and a[7] > a[4]
    again = kind()
    again.load_state_dict(objective.state_dict())
    assert again.state_dict() == objective.state_dict()


@pytest.mark.parametrize(
    ("kind", "absent"),
    [(PolicyGradientObjective, "log_density"), (DiffusionNFTObjective, "student"), (GNDMObjective, "groups")],
)
def test_signals_that_are_not_given_are_named(kind, absent):
    with pytest.raises(ValueError, match=absent):
        kind(2.0).student_loss(signals()._replace(**{absent: None}))


def test_the_policy_moves_towards_transitions_that_succeeded():
    given = signals()
    PolicyGradientObjective(2.0, policy_weight=0.5).student_loss(given).loss.backward()
    torch.testing.assert_close(given.log_density.grad, -0.5 * given.advantage / 8)


def test_the_implicit_policies_move_towards_samples_that_succeeded_and_away_from_the_others():
    given = signals()
    given = given._replace(advantage=given.advantage.clamp(-1, 1))
    DiffusionNFTObjective(2.0).student_loss(given).loss.backward()
    towards = (-given.student.grad * (given.x0.detach() - given.student.detach())).flatten(1).sum(1)
    assert torch.equal(towards.sign(), given.advantage.sign())


def test_failing_samples_weigh_more_in_the_fake_scores_data():
    w = BestOfKObjective(best_of=4).sharpening_weights(torch.tensor([-0.75, -0.25, 0.25, 0.75]))
    assert w[0] > w[1] > w[2] > w[3] and w.mean() == pytest.approx(1.0)


def test_the_first_step_is_anchored_and_the_others_are_matched():
    given, objective, dmd = signals(), DPDMDObjective(2.0, diversity_weight=0.5), DMDObjective(2.0)
    first = objective.student_loss(given)
    torch.testing.assert_close(first.loss, 0.5 * (given.x0 - given.anchor).square().mean())
    later = given._replace(anchor=None)
    assert torch.equal(objective.student_loss(later).loss, dmd.student_loss(later).loss)
    both = DPDMDObjective(2.0, diversity_weight=0.5, match_first=True)
    torch.testing.assert_close(both.student_loss(given).loss, first.loss + dmd.student_loss(given).loss)
    assert both.needs.student_steps == 1


def test_options_out_of_range_are_named():
    for kind, name, value in (
        (PolicyGradientObjective, "policy_weight", -1.0), (BestOfKObjective, "best_of", 0.5), (GNDMObjective, "group_share", 2.0),
        (DiffusionNFTObjective, "nft_beta", 0.0), (DPDMDObjective, "anchor_steps", 31),
    ):  # fmt: skip
        with pytest.raises(OptionError) as caught:
            kind(**{name: value})
        assert caught.value.option == name


def test_every_option_of_a_rival_is_declared_for_people():
    for name, factory in get_plugin_manager().objectives().items():
        for option, field in options.declared(factory).model_fields.items():
            about = options.metadata(field)
            assert field.description and field.description.endswith("."), (name, option)
            assert about["group"] in options.GROUPS and about.get("needs", "reward") in EVERYTHING, (name, option)
