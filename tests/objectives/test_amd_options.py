"""AMD's options, each held to its equation."""

import logging

import pytest
import torch

from amd_plugin import AMDObjective, DMDObjective, Signals, options
from amd_plugin.adapters.offers import OFFERS
from amd_plugin.errors import OptionError
from amd_plugin.hookspecs import EVERYTHING, IF_OFFERED
from amd_plugin.maths.coherence import Coherence, cosines
from amd_plugin.maths.operators import adaptation_weights
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd import decoupled_dmd, dmd2
from amd_plugin.objectives.dmd_options import DMDOptions

A = torch.tensor([-1.0, -0.6, -0.2, 0.0, 0.3, 0.5, 0.8, 1.0])


def signals(advantage=A, seed=0, **more):
    draws = torch.Generator().manual_seed(seed)
    x0, cond, uncond, fake = (torch.randn(8, 3, generator=draws) for _ in range(4))
    return Signals(x0.requires_grad_(), cond, uncond, fake, torch.linspace(0.05, 0.95, 8), advantage, **more)


def test_guidance_only_takes_guidance_from_failing_samples_and_nothing_else():
    alpha, beta = adaptation_weights(A, 0.5, "guidance_only")
    assert torch.equal(beta, torch.ones(8))
    torch.testing.assert_close(alpha, torch.tensor([0.5, 0.7, 0.9, 1, 1, 1, 1, 1]))
    unguided = AMDObjective(1.0, side="guidance_only", sharpening=0.0)
    s = signals()
    assert torch.equal(unguided.student_loss(s).loss, DMDObjective(1.0).student_loss(s).loss)


def test_static_weights_have_the_mean_of_the_adaptive_ones():
    per_sample, static = (AMDObjective(2.0, static=static, sharpening=0.0) for static in (False, True))
    s = signals()
    alpha, beta = adaptation_weights(A, 0.5, "negative")
    direction = static.operator()(s)
    plain = DMDObjective(2.0).operator()(s)
    torch.testing.assert_close(direction.match, beta.mean() * plain.match)
    torch.testing.assert_close(direction.guide, alpha.mean() * plain.guide)
    assert not torch.equal(direction.match, per_sample.operator()(s).match)
    part = Signals(*(value[:2] for value in s[:6]), batch_advantage=A)
    torch.testing.assert_close(
        static.operator()(part).match, direction.match[:2], msg="a part of a batch has the batch's means"
    )


@pytest.mark.parametrize("make", [DMDObjective, AMDObjective, dmd2])
def test_a_window_masks_guidance_and_nothing_else(make):
    s = signals(advantage=None)
    inside = (s.sigma >= 0.0) & (s.sigma <= 0.5)
    masked, plain = (make(2.0, guidance_window=w).operator()(s) for w in ((0.0, 0.5), None))
    assert torch.equal(masked.match, plain.match)
    assert torch.equal(masked.guide[inside], plain.guide[inside]) and not masked.guide[~inside].any()
    with pytest.raises(OptionError, match="guidance_sigma"):
        make(2.0, guidance_window=(0.0, 0.5), guidance_sigma=(0.0, 0.5))


def test_sharpening_counts_inside_its_window_only():
    objective = AMDObjective(sharpening_sigma=(0.0, 0.5))
    sigma = torch.linspace(0.05, 0.95, 8)
    weights, everywhere = objective.sharpening_weights(A, sigma), AMDObjective().sharpening_weights(A)
    inside = sigma <= 0.5
    assert torch.equal(weights[inside], everywhere[inside]) and torch.equal(weights[~inside], torch.ones(int((~inside).sum())))
    with pytest.raises(ValueError, match="sharpening_sigma"):
        objective.sharpening_weights(A)


def test_equal_rewards_are_no_reason():
    objective = AMDObjective()
    for _ in range(3):
        a = objective.advantage(torch.full((8,), 0.1), torch.arange(8) // 4)
    assert not a.any()


def test_rungs_have_statistics_of_their_own_and_state_goes_round():
    one, two = AMDObjective(std_floor=1.0), AMDObjective(std_floor=1.0)
    groups = torch.arange(8) // 4
    narrow = torch.randn(8, generator=torch.Generator().manual_seed(0))
    for rung in (0, 1) * 5:
        one.advantage(narrow * (10 if rung == 0 else 0.1), groups, rung)
    two.load_state_dict(one.state_dict())
    for rung in (0, 1):
        assert torch.equal(one.advantage(narrow, groups, rung), two.advantage(narrow, groups, rung))
    assert one.state_dict() == two.state_dict()
    assert one.advantage(0.1 * narrow, groups, 0).abs().max() < 0.3 < one.advantage(0.1 * narrow, groups, 1).abs().max()


def test_a_reward_gradient_is_added_as_a_loss_of_its_own():
    for make in (DMDObjective, AMDObjective, decoupled_dmd):
        plain, followed = make(2.0), make(2.0, reward_gradient=0.25)
        assert followed.needs.reward and followed.needs.reward_gradient
        groups = torch.arange(8) // 4
        rewards = torch.arange(8.0)
        for objective in (plain, followed):
            objective.advantage(rewards, groups)
        s = signals(torch.zeros(8))
        s = s._replace(guide_cond=s.real_cond, guide_uncond=s.real_uncond)
        wanted = s._replace(reward=s.x0[:, 0].where(torch.arange(8) != 2, torch.nan))
        base = torch.autograd.grad(plain.student_loss(s).loss, s.x0)[0]
        output = followed.student_loss(wanted)
        grad = torch.autograd.grad(output.loss, s.x0)[0]
        spread = rewards[:4].std()
        expected = torch.zeros(8, 3)
        expected[:, 0] = -0.25 / spread / 8
        expected[2] = 0  # it failed there
        torch.testing.assert_close(grad - base, expected, atol=1e-6, rtol=1e-4)
        assert output.metrics["reward_gradient_ratio"].item() == pytest.approx((expected.norm() / base.norm()).item(), rel=1e-4)
        assert followed.student_loss(s._replace(reward=torch.full((8,), torch.nan))).metrics["reward_gradient_ratio"] == 0
        with pytest.raises(ValueError, match="differentiable reward"):
            followed.student_loss(s)


def test_coherence_tells_agreement_from_noise():
    draws = torch.Generator().manual_seed(1)
    groups, sigma = torch.arange(64) // 8, torch.full((64,), 0.5)
    zone = torch.arange(64) % 2 == 0
    agreed = torch.randn(8, 1, 5, generator=draws).expand(8, 8, 5).reshape(64, 5)
    match = torch.where(zone[:, None], torch.randn(64, 5, generator=draws), agreed)
    measured = Coherence()
    measured.update(match, sigma, groups, zone)
    metrics = measured.metrics()
    assert metrics["coherence_zone/middle"] < 0.2 and metrics["coherence_outside/middle"] == pytest.approx(1.0, abs=1e-5)
    assert torch.isnan(metrics["coherence_zone/low"])
    again = Coherence()
    again.load_state_dict(measured.state_dict())
    assert torch.equal(again.sums, measured.sums)
    assert not cosines(match).diagonal().any()


def test_metrics_say_what_a_setting_implies():
    metrics = AMDObjective(3.0).student_loss(signals(groups=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))).metrics
    assert metrics["tilt_ratio"].item() == pytest.approx(torch.tensor(2.0).exp().item(), rel=1e-4)
    alpha, beta = adaptation_weights(A, 0.5, "negative")
    assert metrics["alpha"] == alpha.mean() and metrics["beta"] == beta.mean()
    assert metrics["guidance"].item() == pytest.approx((1 + 2 * alpha / beta).mean().item(), rel=1e-6)
    assert metrics["alpha_share/0.95"] == 5 / 8 and metrics["alpha_share/0.50"] == 2 / 8
    assert metrics["guidance_share/0.25"] == 1 / 8, "the sample that did worst has a third of its guidance"
    assert metrics["zone_share/low"] == 1 - 1 / 3 and metrics["zone_share/high"] == 0
    assert -1 <= metrics["match_guide_cosine"] <= 1


def test_weights_are_logged_as_they_were_applied():
    joined = {"batch_advantage": A}
    static = AMDObjective(3.0, static=True).student_loss(signals(**joined)).metrics
    alpha, _ = adaptation_weights(A, 0.5, "negative")
    assert static["alpha"].item() == pytest.approx(alpha.mean().item()) and static["alpha_share/0.75"] == 1
    masked = AMDObjective(3.0, strength=0.5, guidance_window=(0.0, 0.5)).student_loss(signals()).metrics
    assert masked["guidance_share/0.00"] == 0.5 and masked["guidance"] < 2, "outside of the window there is no guidance"
    assert "alpha" not in AMDObjective(1.0).student_loss(signals()).metrics, "nothing is adapted here"
    parts = [
        AMDObjective(3.0).student_loss(Signals(*(v[i : i + 2] for v in signals()[:6]), batch_advantage=A)).metrics
        for i in (0, 2, 4, 6)
    ]
    whole = AMDObjective(3.0).student_loss(signals()).metrics
    for name in ("tilt_ratio", "tilt_kl", "advantage_std", "clip_share"):
        assert all(part[name] == whole[name] for part in parts), f"{name} is of the batch, whichever part is looked at"
    for name in ("alpha", "alpha_share/0.50", "guidance_share/1.00", "zone_share"):
        if name in whole:
            assert sum(part[name] for part in parts).item() / 4 == pytest.approx(whole[name].item(), abs=1e-6)


def student_metrics(objective, reward, groups=None):
    """The metrics of a student turn after `reward`."""
    a = objective.advantage(reward, torch.arange(8) // 4 if groups is None else groups)
    return objective.student_loss(signals(a)).metrics


def test_equal_rewards_and_small_differences_are_told_apart():
    objective = AMDObjective()
    objective.reward_unit = 2.0
    small = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.0, 1.0, 1.0, 1.0])
    metrics = student_metrics(objective, small)
    assert metrics["zero_spread_share"] == 0.5 and metrics["quiet_share"] == 1
    metrics = student_metrics(objective, small + torch.tensor([-9.0, 0, 0, 0, 0, 0, 0, 0]))
    assert metrics["zero_spread_share"] == 0.5 and metrics["quiet_share"] == 0.5


@pytest.mark.parametrize(
    ("options", "unit", "message"), [({"tolerance": 2.0}, 0.0, "2 spreads"), ({}, 100.0, "objective.unit (100)")]
)
def test_a_tolerance_above_all_differences_is_warned_about_once(options, unit, message, caplog):
    objective, draws = AMDObjective(**options), torch.Generator().manual_seed(0)
    objective.reward_unit = unit
    with caplog.at_level(logging.WARNING):
        for _ in range(120):
            objective.advantage(torch.randn(8, generator=draws), torch.arange(8) // 4)
    assert len(caplog.records) == 1 and message in caplog.text
    caplog.clear()
    some_equal = AMDObjective(**options)
    some_equal.reward_unit = unit
    with caplog.at_level(logging.WARNING):
        for _ in range(60):
            some_equal.advantage(torch.cat((torch.ones(4), torch.randn(4, generator=draws))), torch.arange(8) // 4)
    assert len(caplog.records) == 1, "groups of equal rewards are not counted"
    caplog.clear()
    by_rung = AMDObjective(**options)
    by_rung.reward_unit = unit
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            scored_by_rung(by_rung, torch.randn(4, 4, generator=draws).unbind())
        assert not caplog.records, "the rungs of a turn are one batch"
        by_rung.advantage(torch.randn(4, generator=draws), torch.zeros(4))
    assert len(caplog.records) == 1
    caplog.clear()
    for loud, reward in ((AMDObjective(), torch.arange(8.0)), (AMDObjective(tolerance=0.5), torch.ones(8))):
        for _ in range(60):
            loud.advantage(reward, torch.arange(8) // 4)
    assert not caplog.records, "a constant reward is not the tolerance's doing"


def test_a_reward_gradient_does_not_pull_harder_the_less_rewards_differ():
    objective = DMDObjective(reward_gradient=1.0)
    assert objective.needs.group_size == 2, "one sample has no spread"
    groups = torch.arange(8) // 4
    objective.advantage(torch.arange(8.0), groups)
    widest = torch.arange(4.0).std()
    for _ in range(2000):
        objective.advantage(torch.arange(8.0) * 1e-6, groups)
    s = signals(torch.zeros(8))
    grad = torch.autograd.grad(objective.student_loss(s._replace(reward=s.x0[:, 0])).loss, s.x0)[0]
    base = torch.autograd.grad(DMDObjective().student_loss(s).loss, s.x0)[0]
    torch.testing.assert_close((grad - base)[:, 0], torch.full((8,), -1 / widest.item() / 8), rtol=1e-4, atol=1e-5)
    again = DMDObjective(reward_gradient=1.0)
    again.load_state_dict(objective.state_dict())
    assert again.state_dict() == objective.state_dict()


def scored_by_rung(objective, rewards):
    """A turn's rewards, one tensor [n] for each rung in turn; returns the advantages of all."""
    return torch.cat([objective.advantage(r, torch.arange(len(r)) // 4, rung) for rung, r in enumerate(rewards)])


def test_the_metrics_of_a_turn_are_those_of_all_its_rungs():
    objective, rungs = AMDObjective(sharpening=0.0, strength=0.5), torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    draws, nan = torch.Generator().manual_seed(0), torch.nan
    failed, quiet = torch.tensor([nan, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0]), torch.ones(4)
    turns = [(torch.randn(8, generator=draws), torch.randn(4, generator=draws)), (failed, quiet)]
    for turn in turns:
        a = scored_by_rung(objective, turn)
    s = Signals(*(torch.randn(12, 3, generator=draws) for _ in range(4)), advantage=a, rung=rungs)
    metrics = objective.student_loss(s).metrics
    assert metrics["failed_rewards"].item() == pytest.approx(1 / 12)
    assert metrics["zero_spread_share"].item() == pytest.approx(4 / 12) == metrics["quiet_share"].item()
    spreads = objective.statistics.spread(0), objective.statistics.spread(1)
    assert metrics["reward_spread"].item() == pytest.approx((8 * spreads[0] + 4 * spreads[1]).item() / 12)
    scored_by_rung(objective, turns[0][:1]), objective.sharpening_weights(a[:8])
    objective.advantage(quiet, torch.zeros(4), 1)
    assert objective.student_loss(s).metrics["quiet_share"] == 1, "the fake score's turn was another"


def test_the_implied_tilt_is_that_of_each_samples_own_rung():
    objective, rungs = AMDObjective(kl=0.5), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    draws = torch.Generator().manual_seed(0)
    a = scored_by_rung(objective, (torch.randn(4, generator=draws), torch.randn(4, generator=draws) ** 3))
    tilts = objective._kl.tilts(rungs)
    weights = objective.sharpening_weights(a, rungs=rungs)
    metrics = objective.student_loss(signals(a, rung=rungs)).metrics
    assert tilts[0] != tilts[4]
    assert metrics["sharpening"].item() == pytest.approx(tilts.mean().item(), rel=1e-5)
    assert metrics["tilt_ratio"].item() == pytest.approx((weights.max() / weights.min()).item(), rel=1e-5)
    part = Signals(*(v[:2] for v in signals(a)[:6]), batch_advantage=a, rung=rungs[:2], batch_rung=rungs)
    for name in ("sharpening", "tilt_ratio", "tilt_kl"):
        assert torch.equal(objective.student_loss(part).metrics[name], metrics[name])


def reward_slopes(objective, rung):
    """The slope [8] of the reward's part in the loss of a student turn with exit rungs `rung`."""
    s = signals(torch.zeros(8), rung=rung)
    grad = torch.autograd.grad(objective.student_loss(s._replace(reward=s.x0[:, 0])).loss, s.x0)[0]
    return (grad - torch.autograd.grad(DMDObjective().student_loss(s).loss, s.x0)[0])[:, 0] * 8


def test_a_reward_gradient_is_divided_by_the_spread_of_each_samples_own_rung():
    """Samples that were harvested have several rungs, and each is scored by a call of its own."""
    objective, groups, spread = DMDObjective(reward_gradient=1.0), torch.arange(4) // 4, torch.arange(4.0).std()
    rungs = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    objective.advantage(torch.arange(4.0) * 10, groups, 0)
    objective.advantage(torch.arange(4.0), groups, 1)
    expected = -1 / torch.where(rungs == 0, 10.0, 1.0) / spread
    torch.testing.assert_close(reward_slopes(objective, rungs), expected, rtol=1e-4, atol=1e-5)
    unscored = reward_slopes(objective, torch.full((8,), 2))
    assert torch.equal(unscored, reward_slopes(objective, None)), "a host that scores all rungs as one has one spread"
    assert torch.equal(unscored, reward_slopes(objective, torch.ones(8, dtype=torch.long)))


def test_the_papers_side_is_warned_about_where_it_loses_modes(caplog):
    with caplog.at_level(logging.WARNING):
        AMDObjective(1.0, side="both"), AMDObjective(2.0), AMDObjective(2.0, side="both", strength=0.0)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        AMDObjective(2.0, side="both")
    assert "loses modes" in caplog.text


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"memory_share": 1.0}, "memory_share"),
        ({"reward_gradient": -1.0}, "reward_gradient"), ({"sharpening_sigma": (0.5, 0.2)}, "sharpening_sigma"),
        ({"guidance_window": (0.5, 0.5)}, "guidance_window"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(options, name):
    with pytest.raises(OptionError) as caught:
        AMDObjective(**options)
    assert caught.value.option == name


ALL_FINE, ONE_FAILED = torch.tensor([0.0, -0.02, -0.05, -0.1]), torch.tensor([0.0, -0.02, -0.05, -4.6])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_a_unit_tells_a_failure_from_the_worst_of_good_samples():
    reward = torch.cat([ALL_FINE, ONE_FAILED])
    by_spread, by_unit = (AMDObjective(std_floor=0.0, unit=unit, tolerance=0) for unit in (0.0, 1.0))
    assert AMDObjective(unit=0.0, std_floor=0.0).advantage(reward, GROUPS)[3] < -0.99, "as bad as can be, of all that are fine"
    a = by_unit.advantage(reward, GROUPS)
    assert a[:4].abs().max() < 0.1 and a[7] == -1
    torch.testing.assert_close(a[:4], ALL_FINE - ALL_FINE.mean())
    assert not torch.equal(a, by_spread.advantage(reward, GROUPS))


def test_with_a_unit_the_tilt_is_the_rewards_own_whatever_a_group_holds():
    """q* ~ p exp(lambda r / unit): two samples are tilted apart by their rewards and by nothing else in their group."""
    objective = AMDObjective(sharpening=1.5, unit=2.0, tolerance=0)
    for others in ([0.0, 0.1], [-0.5, 0.9], [0.3, 0.3]):
        reward, groups = torch.tensor([0.2, 1.0, *others]), torch.zeros(4, dtype=torch.long)
        weights = objective.sharpening_weights(objective.advantage(reward, groups))
        torch.testing.assert_close((weights[0] / weights[1]).log(), torch.tensor(1.5 * 0.8 / 2.0))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_groups_mean_holds_the_sample_itself(size):
    """The tilt by a sample's own reward is lambda (1 - 1 / n) / unit, as docs/how-it-works.md says."""
    objective, groups = AMDObjective(unit=2.0, tolerance=0), torch.zeros(size, dtype=torch.long)
    low, high = (objective.advantage(torch.cat([torch.tensor([r]), torch.zeros(size - 1)]), groups)[0] for r in (0.0, 1.0))
    torch.testing.assert_close(high - low, torch.tensor((1 - 1 / size) / 2.0))


def test_guidance_at_all_levels_is_strong_guidance_however_it_is_said():
    for windows in ({}, {"guidance_window": (0.0, 1.0)}, {"guidance_sigma": (0.02, 0.98)}):
        assert AMDObjective(4.0, **windows).strength == 0.5
    assert AMDObjective(4.0, guidance_window=(0.0, 0.5)).strength == 0


@pytest.mark.parametrize(
    ("option", "value"), [("side", "negativ"), ("sharpening_kind", "lin"), ("strength", "Auto"), ("tolerance", None)]
)
def test_a_word_that_is_none_is_refused_by_name(option, value):
    with pytest.raises(OptionError, match=rf"{option}: must be .*got {value!r}"):
        AMDObjective(**{option: value})


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("baseline", "prompt", "train.group_size"), ("scale", "batch", "objective.unit"), ("squash", "tanh", "clipped"),
        ("limit", 0.5, "objective.unit"), ("coherence_gate", True, "objective/coherence_zone"),
        ("memory_size", 10, "384"), ("zone", -0.25, "-0.5"),
    ],
)  # fmt: skip
def test_a_removed_option_says_what_to_use_and_is_accepted_where_it_changes_nothing(option, value, advice):
    with pytest.raises(OptionError, match=rf"{option}: was removed.*{advice}"):
        AMDObjective(**{option: value})
    AMDObjective(**{option: AMDOptions.REMOVED[option].always})


def test_the_papers_form_sets_all_that_is_amds_own():
    paper = AMDOptions.paper()
    assert set(paper) == set(AMDOptions.model_fields) - set(DMDOptions.model_fields)
    form = AMDObjective(1.0, **paper)
    assert (form.strength, form.side, form.unit, form.tolerance, form.sharpening_sigma) == (0.5, "both", 0, 0, None)
    torch.testing.assert_close(form.sharpening_weights(A), (1 - A) / (1 - A).mean())


def test_every_option_is_declared_for_people():
    for name, field in AMDOptions.model_fields.items():
        about = options.metadata(field)
        assert field.description and field.description[0].isupper() and field.description.endswith("."), name
        assert about["group"] in options.GROUPS and about.get("needs", "reward") in EVERYTHING, name


# For each option with a need: a value other than its default, and the further options without which it has no effect.
NEEDY = {
    "guidance_window": ((0.0, 0.5), {}), "reward_gradient": (0.1, {}), "gan_weight": (0.1, {}),
    "gan_r1": (0.1, {"gan_weight": 0.1}), "gan_r1_sigma": (0.1, {"gan_weight": 0.1}), "guidance_sigma": ((0.1, 0.9), {}),
    "match_sigma": ((0.1, 0.9), {}), "sharpening_sigma": ((0.0, 0.3), {}), "memory_share": (0.1, {}),
    "advantage_guidance": (2.0, {}), "advantage_gradient": (0.3, {}),
}  # fmt: skip
NEEDLESS = {
    "guidance_scale": 1.0, "strength": 0.25, "sharpening": 0.5, "side": "both", "unit": 1.0, "tolerance": 0.25,
    "sharpening_kind": "linear", "std_floor": 0.0, "static": True, "normalizer": "global",
    "kl": 0.5,
}  # fmt: skip


def needs_of(**options):
    """Fields of `Needs` that differ from their defaults."""
    return set(AMDObjective(**{"guidance_scale": 3.0, **options}).needs.missing(()))


def test_an_option_with_a_need_changes_exactly_that_need():
    declared = {name: options.metadata(field).get("needs") for name, field in AMDOptions.model_fields.items()}
    assert NEEDY.keys() == {name for name, need in declared.items() if need is not None}
    for name, (value, others) in NEEDY.items():
        assert needs_of(**others, **{name: value}) ^ needs_of() == {declared[name]}, name


def test_an_option_without_a_need_asks_for_what_every_adapter_offers():
    assert NEEDLESS.keys() == AMDOptions.model_fields.keys() - NEEDY.keys()
    for name, value in NEEDLESS.items():
        assert value != AMDOptions.model_fields[name].default or name == "guidance_scale", name
        assert needs_of(**{name: value}) <= OFFERS, name


def test_every_need_is_offered_by_every_adapter_or_declared_by_an_option():
    declared = {options.metadata(field).get("needs") for field in AMDOptions.model_fields.values()} - {None}
    of_rivals = {"groups", "student_steps", "transition_density", "student_prediction", "teacher_path"}
    assert declared | OFFERS == EVERYTHING - of_rivals and not declared & OFFERS


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("own_unit", [0.0, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
def test_guidance_alone_takes_its_unit_from_the_spread_of_rewards(guidance, own_unit, scale):
    rewards, groups = torch.randn(32, generator=torch.Generator().manual_seed(0)), torch.arange(8).repeat_interleave(4)
    objective = AMDObjective(guidance, advantage_guidance="auto", sharpening=0.0)
    objective.reward_unit = own_unit
    a = objective.advantage(scale * rewards, groups)
    assert objective.unit == pytest.approx(float(objective.statistics.spread()) / 4) and objective.tolerance == 0
    torch.testing.assert_close(a, AMDObjective(guidance, unit=objective.unit / scale, tolerance=0.0).advantage(rewards, groups))
    assert (a.abs() == 1).float().mean() > 0.5, "outcomes are nearly certain"
    assert not AMDObjective(guidance, advantage_guidance="auto", sharpening=0.0).advantage(torch.ones(32), groups).any()
    for other in ({"sharpening": 1.0}, {"advantage_guidance": 0.0}, {"unit": 0.5}):
        kept = AMDObjective(1.0, **{"advantage_guidance": "auto", "sharpening": 0.0, **other})
        kept.reward_unit = 2.0
        kept.advantage(rewards, groups)
        assert kept.unit == other.get("unit", 2.0)


def test_the_unit_of_rewards_is_followed_where_it_helps():
    auto = AMDObjective(1.25)
    assert auto.unit == 0 and auto.sharpening_sigma == (0.0, 0.5), "nothing was set"
    auto.reward_unit = 2.0
    assert auto.unit == 2.0 and auto.sharpening_sigma is None
    assert torch.equal(auto.sharpening_weights(A, torch.linspace(0, 1, 8)), auto.sharpening_weights(A))
    for objective in (AMDObjective(2.0), AMDObjective(1.25, unit=0.0)):
        objective.reward_unit = 2.0
        assert objective.unit == 0
    own = AMDObjective(2.0, unit=0.5, sharpening_sigma=(0.0, 0.3))
    own.reward_unit = 2.0
    assert own.unit == 0.5 and own.sharpening_sigma == (0.0, 0.3)
    for wrong in (-1.0, float("nan"), float("inf")):
        for option in ("unit", "tolerance"):
            with pytest.raises(OptionError, match=option):
                AMDObjective(**{option: wrong})


def test_good_samples_are_left_alone_and_failures_are_not():
    objective = AMDObjective(unit=1.0)
    assert objective.tolerance == 0.5
    a = objective.advantage(torch.cat([ALL_FINE, ONE_FAILED / 4]), GROUPS)
    assert not a[:4].any(), "the order of good samples is nothing to learn from"
    exact = (ONE_FAILED / 4 - ONE_FAILED.mean() / 4)[3] + 0.5
    torch.testing.assert_close(a[7], exact)
    weights = objective.sharpening_weights(a)
    assert (weights[:4] == weights[0]).all() and weights[7] > weights[0]


def test_without_a_unit_small_differences_count_unless_asked():
    assert AMDObjective().tolerance == 0 and AMDObjective(unit=0.0, tolerance=0.5).tolerance == 0.5
    reward = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    plain, tolerant = (AMDObjective(unit=0.0, tolerance=t).advantage(reward, GROUPS) for t in (0.0, 0.5))
    assert plain[2] == 0 and (plain[:2] < 0).all()
    assert tolerant[1] == 0 and tolerant[0] == pytest.approx(float(plain[0]) + 0.5)


def test_automatic_advantage_guidance_is_a_need_of_hosts_that_offer_it_only():
    objective = AMDObjective(3.0, advantage_guidance="auto")
    assert objective.needs.fake_score_outcome == IF_OFFERED
    assert needs_of(advantage_guidance="auto") == needs_of()
    weights = objective.sharpening_weights(torch.tensor([-1.0, 1.0]))
    assert weights[0] > weights[1], "without a contrast, sharpening is as the schedule has it"
