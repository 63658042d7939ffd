"""From rewards to advantages, over two real processes."""

import logging
import subprocess
import sys

import pytest
import torch

from amd_plugin import AMDObjective, DMDObjective, Signals, hookimpl, options
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.failures import Failures
from amd_plugin.adapters.host_objective import adaptive_objective, require_fit
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.offers import OFFERS
from amd_plugin.adapters.steering import Steering
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import EVERYTHING, IN_WORDS
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd import decoupled_dmd, dmd2
from amd_plugin.objectives.reward_statistics import group_ids
from tests.helpers.processes import run, torchrun
from tests.helpers.simulated_device import SIMULATED, SimulatedDevice

PROMPTS = ["cat", "dog", "cat", "dog"]
X0 = torch.tensor([1.0, 5.0, 3.0, 9.0]).reshape(4, 1)

RANK = """
import sys, torch, torch.distributed as dist
from amd_plugin import AMDObjective, get_plugin_manager, hookimpl
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.failures import Failures
from amd_plugin.objectives.reward_statistics import group_ids
from tests.adapters.inside.ranks import leave_group
rank, store, fails = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "fails"
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
def reward(media, prompts):
    if fails and rank == 0:
        raise ConnectionError("no answer")
    return media[:, 0]
own = slice(2 * rank, 2 * rank + 2)
x0 = torch.tensor([1.0, 5.0, 3.0, 9.0]).reshape(4, 1)[own]
prompts = ["cat", "dog", "cat", "dog"][own]
class Flips:
    @hookimpl
    def distill_sigma_sampler(self, options):
        return lambda sigma, advantage, **rest: sigma.flip(0) if len(advantage) == len(sigma) == 4 else 1 / 0
    @hookimpl
    def distill_strength_schedule(self, metrics):
        return metrics.get("objective/zone_share", 1.0)
class Moody:
    @hookimpl
    def distill_strength_schedule(self):
        return 1 / 0 if rank == 1 else 0.5
plugins = get_plugin_manager()
plugins.register(Flips(), "flips")
plugins.register(Moody(), "moody")
bridge = HostBridge(AMDObjective(sharpening=1.0), reward, plugins=plugins)
for turn in range(2):
    bridge.start_turn(0, 1, {"zone_share": torch.tensor(0.5 * rank)})
    assert bridge.objective.schedule_factor == (0.125, 0.25)[turn], "the first rank's, and then without the plugin that failed"
    assert plugins.statuses["moody"].status == "failed" and plugins.statuses["moody"].cause.startswith(
        "on process 1: in" if rank == 0 else "in distill_strength_schedule: ZeroDivisionError"
    )
    advantage, weight = bridge.advantages(x0, group_ids(prompts, 2), prompts), bridge.weights()
levels = bridge.move_noise_levels(torch.tensor([0.1, 0.2]) + 0.5 * rank, "student")
scale = bridge.objective.schedule_factor
# Rows of ranks with different numbers of them, and one rung for each prompt.
assert bridge.ranks.gathered(torch.arange(rank + 1.0)[:, None]).tolist() == [[0.0], [0.0], [1.0]]
assert bridge.ranks.gathered(torch.zeros(2 * rank, dtype=torch.long)).tolist() == [0, 0]
failures = Failures(0.999, bridge)
failures.add(x0, {"condition": 2 * x0}, 0)
held = [None, None]
dist.all_gather_object(held, failures.state_dict())
assert held[0] == held[1] and (fails or held[0]), "every rank holds the same memory"
again, given, replaced = failures.recall(x0 + 100, {"condition": x0}, 0, "turn")
assert fails or (replaced.all() and (again < 9).all() and (given["condition"] == 2 * again).all())
groups = torch.tensor([7, 8]) if rank == 0 else torch.tensor([8, 7])
assert bridge.one_rung_per_group(torch.tensor([2, 3]) - rank, groups).tolist() == ([2, 3] if rank == 0 else [3, 2])
by_rung = bridge.advantages(x0, groups, prompts, rung=torch.tensor([rank, rank]))
assert fails or (by_rung == 0).all(), "no two samples of a prompt have the same rung"
assert fails or set(bridge.objective.state_dict()["rewards"]["updates"]) == {"0", "1"}
print(advantage.tolist(), weight.tolist(), bridge.metrics["failed_rewards"].item(), levels.tolist(), scale, sep=";")
leave_group()
"""


def two_ranks(tmp_path, reward):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / reward), reward], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    answers = [rank.communicate(timeout=120) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), answers
    columns = zip(*(out.strip().splitlines()[-1].split(";") for out, _ in answers), strict=True)
    advantage, weight, failed, levels, scale = (
        [value for part in column for value in torch.tensor(eval(part)).reshape(-1)] for column in columns
    )
    # Plugins see one batch of all ranks, and metrics that all ranks agree on.
    torch.testing.assert_close(torch.stack(levels), torch.tensor([0.7, 0.6, 0.2, 0.1]))
    assert torch.stack(scale).tolist() == [0.25, 0.25]
    return torch.stack(advantage), torch.stack(weight), torch.stack(failed)


def test_groups_span_ranks(tmp_path):
    advantage, weight, failed = two_ranks(tmp_path, "works")
    bridge = HostBridge(AMDObjective(sharpening=1.0), lambda media, prompts: media[:, 0])
    bridge.objective.schedule_factor = 0.25
    for _ in range(2):
        alone = bridge.advantages(X0, group_ids(PROMPTS, 4), PROMPTS), bridge.weights()
    torch.testing.assert_close(advantage, alone[0])
    torch.testing.assert_close(weight, alone[1])
    assert failed.tolist() == [0, 0] and advantage[0] < 0 < advantage[2]


def test_ranks_whose_rewards_fail_do_not_hang_the_others(tmp_path):
    advantage, weight, failed = two_ranks(tmp_path, "fails")
    assert advantage.tolist() == [0, 0, 0, 0] and weight.tolist() == [1, 1, 1, 1] and failed.tolist() == [0.5, 0.5]


def test_samples_of_several_rungs_have_the_tilt_of_their_own():
    bridge = HostBridge(AMDObjective(2.0, kl=0.5), lambda media, prompts: media.mean(1))
    x0, rungs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(2).repeat(8)
    x0[rungs == 1] = x0[rungs == 1] ** 3
    a, budget = bridge.advantages(x0, torch.arange(16) // 8, rung=rungs), bridge.objective._kl
    expected = torch.exp(-budget.tilts(rungs).to(a) * a)
    scored, weights = bridge.scored(), bridge.weights()
    torch.testing.assert_close(weights, expected / expected.mean())
    assert budget.tilt(0) != budget.tilt(1)
    bridge.advantages(x0, torch.arange(16) // 8, rung=1)
    only = torch.exp(-budget.tilt(1) * bridge._advantage)
    torch.testing.assert_close(bridge.weights(), only / only.mean())
    bridge.recall(scored, x0.device)
    expected = torch.exp(-budget.tilts(rungs).to(a) * a)
    torch.testing.assert_close(bridge.weights(), expected / expected.mean())


def test_the_signals_of_samples_of_several_rungs_have_these():
    bridge = HostBridge(AMDObjective(2.0), lambda media, prompts: media.mean(1))
    x0, rungs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(2).repeat(8)
    bridge.advantages(x0, torch.arange(16) // 8, rung=rungs)
    assert torch.equal(bridge.signal_fields["rung"], rungs) and torch.equal(bridge.signal_fields["batch_rung"], rungs)
    bridge.advantages(x0, torch.arange(16) // 8, rung=1)
    assert "rung" not in bridge.signal_fields, "all samples were scored last"


def test_a_recalled_turns_reward_is_divided_by_the_spread_of_its_own_rung():
    def reward(media, prompts):
        return media.mean(1)

    reward.differentiable = True
    bridge = HostBridge(DMDObjective(1.0, reward_gradient=1.0), reward)
    x0, slopes = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), []
    bridge.advantages(10 * x0, torch.arange(8) // 4, rung=0)
    first = bridge.scored()
    for turn in ("scored last", "recalled"):
        if turn == "recalled":
            bridge.advantages(x0, torch.arange(8) // 4, rung=1)
            bridge.recall(first, x0.device)
        samples = x0.clone().requires_grad_()
        fields = bridge.student_fields(samples)
        bridge.student_loss(Signals(samples, x0, None, x0, **fields)).loss.backward()
        slopes.append(samples.grad)
    assert slopes[0].any() and torch.equal(slopes[0], slopes[1])


def test_an_automatic_length_of_a_rewards_gradient_is_for_the_reference_host(caplog):
    def reward(media, prompts):
        return media.mean(1)

    reward.differentiable = True
    with caplog.at_level(logging.WARNING):
        bridge = HostBridge(AMDObjective(1.0, advantage_gradient="auto"), reward)
        assert "amd.advantage_gradient: auto is 0 in this host; give a length, such as 0.3" in caplog.text
    samples = torch.zeros(8, 3, requires_grad=True)
    bridge.advantages(samples.detach(), torch.arange(8) // 4)
    assert "reward" not in bridge.student_fields(samples)
    given = HostBridge(AMDObjective(1.0, advantage_gradient=0.3), reward)
    given.advantages(samples.detach(), torch.arange(8) // 4)
    assert "reward" in given.student_fields(samples)


@pytest.mark.parametrize("options", [{}, {"kl": 0.5}, {"advantage_guidance": "auto"}, {"memory_share": 0.5}], ids=str)
@pytest.mark.parametrize("rung", [1, torch.tensor([0, 1, 0, 1])], ids=str)
def test_a_scored_turn_waits_for_the_device_once(options, rung):
    """A GPU is idle while its host waits for a number. Here the device is simulated."""
    bridge = HostBridge(AMDObjective(2.0, **options), lambda media, prompts: media.mean(1))
    failures = Failures(bridge.objective.needs.replay, bridge)
    with SimulatedDevice() as device:
        conditions = torch.randn(2, 3, dtype=torch.bfloat16).repeat(2, 1).to(SIMULATED)
        for step in range(3):
            device.waits.clear()
            bridge.start_turn(step, 3)
            x0 = torch.randn(4, 3).to(SIMULATED)
            sigma, rungs = torch.rand(4).to(SIMULATED), rung.to(SIMULATED) if isinstance(rung, torch.Tensor) else rung
            advantage = bridge.advantages(x0, group_ids(conditions, 4), rung=rungs)
            bridge.weights(sigma), bridge.outcomes("fake_score", step)
            if bridge.objective.needs.replay:
                failures.exchange(x0, [conditions], rungs, step)
            fields = {"sigma": sigma, "advantage": advantage, **bridge.signal_fields}
            bridge.objective.student_loss(Signals(x0.detach().requires_grad_(), x0 + 1, x0 - 1, x0 * 0.5, **fields))
    # What is remembered is kept on the host; by then the device has been waited for.
    waits = {place: count for place, count in device.waits.items() if not place.startswith("failure_memory.")}
    assert waits == {"bridge._on_host: cpu": 1}
    assert "memory_share" in options or device.waits == waits


def test_groups_of_conditions_of_any_type():
    for dtype in (torch.float32, torch.bfloat16, torch.long):
        ids = group_ids(torch.tensor([[1, 2], [3, 4], [1, 2]]).to(dtype), 3)
        assert ids[0] == ids[2] != ids[1]
        assert ((ids >= 0) & (ids < 2**53)).all()
        assert ids.tolist() == [int(group_ids(row[None], 1)) for row in torch.tensor([[1, 2], [3, 4], [1, 2]]).to(dtype)]
    assert group_ids(None, 3).tolist() == [0, 0, 0]
    near = torch.zeros(200, 77, dtype=torch.int8)
    near.view(-1)[torch.arange(200) * 77 + torch.arange(200) % 77] += 1 + (torch.arange(200) // 77).to(torch.int8)
    assert len(group_ids(near, 200).unique()) == 200, "one bit is a difference"


@pytest.mark.parametrize(
    "spec", [3, [], [3], {"weight": 1.0}, {"name": "random", "on_error": "raise"}, {"name": "nope"}, "nope"]
)
def test_rewards_that_are_none(spec):
    with pytest.raises(InputError, match="reward"):
        make_reward(spec)


def test_a_reward_by_name_and_a_sum_of_two():
    media = torch.rand(4, 3, 8, 8)
    assert make_reward("random")(media, PROMPTS).shape == (4,)
    objective = AMDObjective(1.25)
    for spec, unit in (("random", 12**-0.5), ([{"name": "random", "weight": 2.0}], 2 * 12**-0.5), ("hackable", 0.0)):
        HostBridge(objective, make_reward(spec))
        assert objective.unit == pytest.approx(unit), spec
    HostBridge(objective, lambda media, prompts: media[:, 0])
    assert objective.unit == 0, "the objective forgets the unit of another reward"
    one, two = {"name": "random"}, [{"name": "random", "weight": 0.5}, {"name": "random", "weight": 0.5}]
    assert make_reward(two)(media, PROMPTS).shape == make_reward(one)(media, PROMPTS).shape


class Third:
    """Two plugins in one file: each adds what it was given."""

    def __init__(self, shift, factor):
        self.shift, self.factor = shift, factor

    @hookimpl
    def distill_sigma_sampler(self, options):
        return lambda sigma, *, role, advantage, step, generator: sigma * 0.5 + self.shift

    @hookimpl
    def distill_strength_schedule(self, step, max_steps):
        return self.factor if step < max_steps else None


def test_plugins_follow_one_another_and_their_factors_multiply(plugins):
    plugins.register(Third(0.0, 0.5), "first")
    plugins.register(Third(0.5, 0.5), "second")
    bridge = HostBridge(AMDObjective(), plugins=plugins)
    assert bridge.moves_noise_levels and not bridge.uses_reward
    torch.testing.assert_close(bridge.move_noise_levels(torch.tensor([0.4, 0.8]), "student"), torch.tensor([0.6, 0.7]))
    bridge.start_turn(0, 1)
    assert bridge.objective.schedule_factor == 0.25
    bridge.start_turn(1, 1)
    assert bridge.objective.schedule_factor == 1


def test_all_of_amds_own_draws_follow_from_the_seed_that_a_host_may_set_late(plugins):
    class Jittered:
        @hookimpl
        def distill_sigma_sampler(self, options):
            return lambda sigma, generator, **rest: torch.rand(len(sigma), generator=generator)

    plugins.register(Jittered(), "jittered")

    def drawn(seed, late=None):
        bridge = HostBridge(
            AMDObjective(2.0, advantage_guidance=1.0), lambda media, prompts: media[:, 0], plugins=plugins, seed=seed
        )
        bridge.seed = bridge.seed if late is None else late
        bridge.advantages(torch.arange(64.0)[:, None], torch.zeros(64, dtype=torch.long))
        draws = bridge.outcomes("turn"), bridge.uniform(1, "turn"), bridge.move_noise_levels(torch.rand(64), "student")
        return [values.tolist() for values in draws]

    assert drawn(5) == drawn(0, late=5)
    assert all(one != other for one, other in zip(drawn(5), drawn(0), strict=True))


def test_without_plugins_nothing_moves(plugins):
    for bridge in (HostBridge(AMDObjective()), HostBridge(AMDObjective(), plugins=plugins)):
        sigma = torch.rand(3)
        bridge.start_turn(0, 0, {"a": torch.tensor(1.0)})
        assert (
            not bridge.moves_noise_levels
            and bridge.move_noise_levels(sigma, "student") is sigma
            and bridge.objective.schedule_factor == 1
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": 1.0}, r"amd\.strength: must be less than 1"),
        ({"strength": "much"}, r"amd\.strength: .*got 'much'"),
        ({"strength": True}, r"amd\.strength: .*got True"),
        ({"side": "left"}, r"amd\.side: .*got 'left'"),
        ({"std_floor": float("nan")}, r"amd\.std_floor"),
        ({"side": torch.nn}, r"amd\.side"),
        ({"squash": "tanh"}, r"amd\.squash: was removed"),
        ({"guidance_scale": 2.0}, "host's own configuration"),
        ({"memory_share": 0.2}, "needs a memory of failures, which this host does not offer"),
        ({"strenght": 0.5}, r"amd\.strenght: unknown key. Did you mean 'strength'"),
    ],
    ids=str,
)
def test_options_that_are_wrong_are_named(given, message):
    with pytest.raises(InputError, match=message):
        adaptive_objective(2.0, given)


def test_every_option_that_the_host_can_follow_passes_through():
    needs = {name: options.metadata(field).get("needs") for name, field in AMDOptions.model_fields.items()}
    followed = [n for n, need in needs.items() if n != "guidance_scale" and (need is None or need in OFFERS)]
    defaults = {name: AMDOptions.model_fields[name].default for name in followed}
    objective = adaptive_objective(2.0, defaults)
    assert objective.state_dict() == AMDObjective(2.0).state_dict() and objective.guidance_scale == 2.0
    for name in ("strength", "sharpening"):
        assert getattr(adaptive_objective(2.0, {**defaults, name: 0.25}), name) == 0.25
    assert adaptive_objective(2.0, {"guidance_window": [0.0, 0.5]}, {*OFFERS, "noise_level"}).guidance_window == (0.0, 0.5)


@pytest.mark.parametrize(
    ("objective", "need"),
    [
        (decoupled_dmd(2.0), "guidance_range"), (DMDObjective(2.0, match_sigma=(0.1, 0.5)), "match_range"),
        (dmd2(2.0), "discriminator"), (AMDObjective(2.0, memory_share=0.1), "replay"),
        (AMDObjective(2.0, sharpening_sigma=(0.0, 0.5)), "fake_score_noise_level"),
        (DMDObjective(2.0, reward_gradient=0.1), "reward_gradient"), (DMDObjective(2.0, guidance_window=(0, 1)), "noise_level"),
    ],
)  # fmt: skip
def test_what_a_host_cannot_give_is_refused_by_name(objective, need):
    with pytest.raises(InputError, match=rf"objective\.needs\.{need}: this host does not offer {IN_WORDS[need]}"):
        require_fit(objective, 2.0)
    require_fit(objective, 2.0, EVERYTHING)


SAVED_BY_ONE = """
import json, os, sys, torch, torch.distributed as dist
from pathlib import Path
from amd_plugin import AMDObjective, Signals
from amd_plugin.adapters.bridge import HostBridge
from tests.adapters.inside.ranks import leave_group
dist.init_process_group("gloo")
rank, draws = dist.get_rank(), torch.Generator().manual_seed(dist.get_rank())
bridge = HostBridge(AMDObjective(2.0, advantage_guidance="auto"), lambda media, prompts: media.flatten(1).mean(1), lambda x: x)
bridge.ranks = type(bridge.ranks)(dist.group.WORLD)
for step in range(4):
    bridge.start_turn(step, 9)
    x0 = torch.randn(8, 3, generator=draws)
    a = bridge.advantages(x0, torch.arange(8) // 4)
    c = torch.randn(8, 3, generator=draws)
    fields = {"fake_good": x0 + c, "fake_bad": x0 - c, **bridge.signal_fields}
    bridge.student_loss(Signals(x0.requires_grad_(), x0 + c, x0 - c, x0 * 0.5, torch.full((8,), 0.5), a, **fields))
    if rank == 0:
        bridge.objective.state_dict()
    bridge.advantages(x0.detach(), torch.arange(8) // 4)  # the fake score's turn, which reads the sums
    Path(f"sums-{rank}-{step}.json").write_text(json.dumps(bridge.objective.state_dict()["contrast"]))
leave_group()
"""


def test_a_checkpoint_of_one_rank_and_a_turn_of_the_fake_score_find_the_sums_of_all_ranks(tmp_path):
    """Saving finished the turn on that rank alone, so that ranks gathered other numbers of tensors in the next one."""
    (tmp_path / "saved.py").write_text(SAVED_BY_ONE)
    code, printed = run([*torchrun(2), "saved.py"], tmp_path, timeout=120)
    assert code == 0, printed
    for step in range(4):
        first, second = ((tmp_path / f"sums-{rank}-{step}.json").read_text() for rank in (0, 1))
        assert first == second


def test_a_schedule_that_is_not_called_is_said(plugins, caplog):
    class Scheduled:
        @hookimpl
        def distill_advantage_schedule(self, sigma):
            return torch.ones_like(sigma)

    plugins.register(Scheduled())
    HostBridge(AMDObjective(), plugins=plugins)
    assert caplog.text.count("distill_advantage_schedule of a plugin has no effect here") == 1


def test_an_objective_with_prompts_and_no_reward_is_refused():
    """An adapter gives prompts where it scores samples: such an objective would be left out, or miss them in its loss."""
    from amd_plugin.objectives.rivals.gndm import GNDMObjective

    with pytest.raises(InputError, match="objective GNDMObjective: needs the prompt of each sample and no reward"):
        require_fit(GNDMObjective(2.0), 2.0, EVERYTHING)


def test_the_bridge_keeps_its_old_names():
    old = Steering(AMDObjective(), lambda media, prompts: media[:, 0])
    old.begin(0, 1)
    assert old.active and not old.moves and old.sensed == {}


@pytest.mark.parametrize("decode", [None, lambda x0: x0.view(4, 3)], ids=["undecoded", "a view"])
def test_a_reward_may_change_what_it_gets_and_the_samples_stay(decode):
    x0 = torch.randn(4, 3)
    before = x0.clone()
    bridge = HostBridge(AMDObjective(), lambda media, prompts: media.mul_(0).sum(1) + torch.arange(4.0), decode)
    assert bridge.advantages(x0, torch.zeros(4, dtype=torch.long)).any() and torch.equal(x0, before)


def test_the_papers_form_needs_nothing_that_adapters_lack():
    assert adaptive_objective(2.0, AMDOptions.paper()).side == "both"


def test_the_scale_of_advantage_guidance_follows_from_all_ranks(monkeypatch):
    objective = AMDObjective(1.0, sharpening=0, advantage_guidance="auto", unit=0)
    x0 = torch.randn(4, 3)
    predictions = {"fake_good": x0 + 0.1, "fake_bad": x0 - 0.1, "advantage": torch.tensor([-1.0, 1.0, -0.5, 0.5])}
    objective.student_loss(Signals(x0.requires_grad_(), x0.detach() + 1, None, x0.detach(), torch.rand(4), **predictions))
    (own,) = (sums.clone() for sums in objective.shared_sums if sums.shape[-1] == 7)
    bridge = HostBridge(objective)
    monkeypatch.setattr(bridge.ranks, "joined", lambda values: torch.cat((values, 3 * values)))
    bridge.start_turn(1, 0)
    (mean,) = (sums for sums in objective.shared_sums if sums.shape[-1] == 7)
    torch.testing.assert_close(mean, 2 * own)
