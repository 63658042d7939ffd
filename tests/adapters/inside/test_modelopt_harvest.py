"""`AMDPipeline(rollouts="harvest")`: one rollout per cycle of the user's loop, with samples of the host's distribution."""

from collections import Counter

import numpy as np
import pytest
import torch
from modelopt.torch.fastgen import DMDPipeline
from modelopt.torch.fastgen.methods import dmd
from scipy import stats
from test_modelopt import batch, brightness, config, pipeline, same, train, weights

from amd_plugin.adapters.modelopt import AMDPipeline
from amd_plugin.adapters.modelopt_rollout import Given, harvest
from amd_plugin.errors import InputError

SDE, ODE = {"student_sample_type": "sde"}, {"student_sample_type": "ode"}


def cycles(pipe, count=2, updates=5, accumulation=1):
    """The user's loop: `updates` of the fake score, then one of the student. Calls by role and graph, per cycle."""
    calls = Counter()
    for role in ("student", "teacher", "fake_score"):
        network = getattr(pipe, role)
        network.register_forward_pre_hook(lambda module, args, role=role: calls.update([(role, torch.is_grad_enabled())]))
    optimizers = {role: torch.optim.SGD(getattr(pipe, role).parameters(), lr=0.05) for role in ("student", "fake_score")}
    torch.manual_seed(0)
    step = 0
    for _ in range(count):
        for turn in range(updates + 1):
            role = "student" if turn == updates else "fake_score"
            optimizers[role].zero_grad()
            for _ in range(accumulation):
                latents, noise, condition, negative = batch(step)
                step += 1
                if role == "student":
                    out = pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative)
                else:
                    out = pipe.compute_fake_score_loss(latents, noise, condition, prompts=[str(step)] * 4)
                (out["total"] / accumulation).backward()
            optimizers[role].step()
    return {role: number / count for role, number in calls.items()}


@pytest.mark.parametrize(("kind", "rollout"), [(SDE, 4), (ODE, 6)], ids=["sde", "ode"])
def test_forwards_and_scores_of_a_cycle(kind, rollout):
    scored = []

    def reward(media, prompts):
        scored.append(tuple(prompts))
        return brightness(media, prompts)

    pipe = pipeline(AMDPipeline, cfg=config(**kind), reward=reward, rollouts="harvest")
    calls = cycles(pipe)
    assert calls == {
        ("student", False): rollout, ("student", True): 1, ("fake_score", True): 5, ("fake_score", False): 1, ("teacher", False): 2
    }  # fmt: skip
    assert len(scored) == 2 * 4 and scored[:4] == [("1",) * 4] * 4 and scored[4:] == [("7",) * 4] * 4, (
        "the first call's prompts"
    )
    plain = cycles(pipeline(AMDPipeline, cfg=config(**kind), rollouts="harvest"))
    assert plain == calls, "without a reward too"


def test_micro_batches_have_rollouts_of_their_own():
    pipe = pipeline(AMDPipeline, cfg=config(**SDE), reward=brightness, rollouts="harvest", accumulation=3)
    calls = cycles(pipe, accumulation=3)
    assert calls[("student", False)] == 3 * 4 and calls[("student", True)] == 3


@pytest.mark.parametrize("kind", [SDE, ODE], ids=["sde", "ode"])
def test_equal_in_distribution(kind):
    """Samples of each rung against the host's own rollouts to it, over projections; and what the test says of the next rung."""
    pipe, count = pipeline(DMDPipeline, cfg=config(**kind)), 500
    _, _, condition, _ = batch(0)
    condition = condition[:1].expand(count, -1, -1)
    options = {"encoder_hidden_states": condition}
    torch.manual_seed(1)
    ours = harvest(pipe, dmd, Given(None, torch.randn(count, 4, 2, 4, 4), condition, None, {}), options)
    levels, stock = pipe.config.sample_t_cfg.t_list[:-1], {}
    while len(stock) < 4:
        noise = torch.randn(count, 4, 2, 4, 4)
        with torch.no_grad():
            x, t = pipe._build_student_input(noise, noise, **options)
            stock[levels.index(pytest.approx(float(t[0])))] = pipe._predict_x0(pipe.student, x, t, **options)
    directions = torch.randn(128, 10, generator=torch.Generator().manual_seed(0)) / 128**0.5

    def differ(a, b):
        a, b = (torch.cat([p := x.flatten(1) @ directions, p**2, x.flatten(1).norm(dim=1, keepdim=True)], 1) for x in (a, b))
        return min(stats.ks_2samp(x, y).pvalue for x, y in zip(a.T, b.T, strict=True)) * a.shape[1]

    assert all(differ(ours.samples[rung], stock[rung]) > 0.01 for rung in range(4))
    assert differ(ours.samples[0], stock[1]) < 1e-3, "the test sees another rung"
    with torch.no_grad():
        again = pipe._predict_x0(pipe.student, ours.x, torch.full((count,), levels[ours.rung]), **options)
    np.testing.assert_array_equal(again, ours.samples[ours.rung])


def test_equal_rewards_are_dmd_with_the_same_harvest():
    plain, ours = (pipeline(AMDPipeline, rollouts="harvest", reward=r) for r in (None, lambda media, prompts: torch.ones(4)))
    assert cycles(plain) == cycles(ours)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reward", [None, brightness])
def test_a_loop_that_starts_with_the_student(reward):
    """Without a harvest the student's turn is the host's own; the loop of one and one harvests for each cycle."""
    pipe = pipeline(AMDPipeline, rollouts="harvest", reward=reward, gan=True)
    losses, _, _ = train(pipe, 5)
    assert all(loss.isfinite().all() for loss in losses) and pipe.turns == {"student": 3, "fake_score": 2}


def test_saved_between_cycles_resumed_equals_straight(caplog):
    pipe, again = (pipeline(AMDPipeline, reward=brightness, rollouts="harvest") for _ in range(2))
    cycles(pipe, 1)
    state = pipe.state_dict()
    assert not caplog.records
    again.load_state_dict(state)
    for role in ("student", "fake_score"):
        getattr(again, role).load_state_dict(getattr(pipe, role).state_dict())
    cycles(pipe, 1), cycles(again, 1)
    assert same(weights(pipe), weights(again)) and pipe.state_dict() == again.state_dict()
    latents, noise, condition, _ = batch(0)
    pipe.compute_fake_score_loss(latents, noise, condition)
    pipe.state_dict()
    assert "within a cycle" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": "often"}, "rollouts: must be one of fresh, harvest, got 'often'"),
        ({"rollouts": "harvest", "accumulation": 0}, "accumulation: must be a whole number from 1, got 0"),
        (
            {"rollouts": "harvest", "cfg": config(student_sample_steps=1, backward_simulation=False)},
            "rollouts: harvest needs a student of several steps",
        ),
        ({"rollouts": "harvest", "cfg": config(backward_simulation=False)}, "rollouts: harvest needs backward_simulation"),
    ],
)
def test_what_has_no_rollouts_to_harvest_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        pipeline(AMDPipeline, **options)


def test_a_smaller_batch_within_a_cycle_is_refused():
    pipe = pipeline(AMDPipeline, reward=brightness, rollouts="harvest")
    latents, noise, condition, _ = batch(0)
    pipe.compute_fake_score_loss(latents, noise, condition)
    with pytest.raises(InputError, match="one size, got 4 and 2 samples"):
        pipe.compute_fake_score_loss(latents[:2], noise[:2], condition[:2])
