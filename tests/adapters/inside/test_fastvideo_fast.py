"""`fast_rollout`: a third fewer forwards than FastVideo's cycle, and samples of the same distribution."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from test_fastvideo import STOCK, one_process, run  # noqa: F401  # a fixture
from toy_fastvideo import Probe, Toy

from amd_plugin.adapters.fastvideo_rollout import joined_conditions, short_rollout

RUNGS = [1000, 750, 500, 250]


@pytest.fixture
def method(tmp_path):
    """The host's own method after two iterations, so that student, critic and teacher are three networks."""
    run(tmp_path, method=STOCK, steps=2)
    return Probe.method


def rolled_out(method, rollout, seed):
    """Rung and samples [B, T, C, H, W] of one rollout."""
    method.cuda_generator.manual_seed(seed)
    batch = method.student.prepare_batch(method.student.dataloader[0], generator=None)
    x0 = rollout(batch)
    return int(batch.dmd_latent_vis_dict["generator_timestep"]), x0.detach()


def test_the_same_seed_gives_the_hosts_own_sample(method):
    """The steps behind the exit rung never reached the sample: with the host's numbers, ours is the host's to the bit."""
    seen = set()
    for seed in range(40):
        stock = rolled_out(method, lambda batch: method._student_rollout(batch, with_grad=True), seed)
        short = rolled_out(method, lambda batch: short_rollout(method, batch, with_grad=True)[0], seed)
        assert stock[0] == short[0] and torch.equal(stock[1], short[1])
        seen.add(stock[0])
    assert seen == set(RUNGS)


def draws(method, rollout, seeds):
    """Rungs [N], and features [N, 26] of the first sample of each rollout: some projections, their squares, its mean and size."""
    rungs, samples = zip(*(rolled_out(method, rollout, seed) for seed in seeds), strict=True)
    x = torch.stack([sample[0].flatten() for sample in samples])
    projected = x @ torch.randn(x.shape[1], 12, generator=torch.Generator().manual_seed(0)) / x.shape[1] ** 0.5
    return np.array(rungs), torch.cat([projected, projected**2, x.mean(1, True), x.norm(dim=1, keepdim=True)], 1).numpy()


def differ(a, b):
    """Smallest p-value that two sets of draws are of one distribution, over rungs and features, times their number."""
    table = [[(rungs == rung).sum() for rung in RUNGS] for rungs, _ in (a, b)]
    values = [stats.chi2_contingency(table).pvalue] + [stats.ks_2samp(x, y).pvalue for x, y in zip(a[1].T, b[1].T, strict=True)]
    return min(values) * len(values)


def test_equal_in_distribution(method):
    """Rungs and samples over 1500 rollouts each, of other seeds; and what the same test says of rollouts that are wrong."""
    count = 1500
    stock = draws(method, lambda batch: method._student_rollout(batch, with_grad=False), range(count))
    short = draws(method, lambda batch: short_rollout(method, batch, with_grad=False)[0], range(count, 2 * count))
    for rungs, _ in (stock, short):
        assert stats.chisquare([(rungs == rung).sum() for rung in RUNGS]).pvalue > 0.01, "uniform"
    for a, b in zip(stock, short, strict=True):
        np.testing.assert_allclose(a.mean(0), b.mean(0), atol=5 * np.std(a, 0).max() / count**0.5)
    assert differ(stock, short) > 0.05

    def one_step_too_few(batch):
        ladder = method._get_denoising_step_list
        method._get_denoising_step_list = lambda device: ladder(device)[:-1]
        try:
            return short_rollout(method, batch, with_grad=False)[0]
        finally:
            del method._get_denoising_step_list

    def noised_too_little(batch):
        add = method.student.add_noise
        method.student.add_noise = lambda x0, noise, timestep: add(x0, 0.7 * noise, timestep)
        try:
            return short_rollout(method, batch, with_grad=False)[0]
        finally:
            del method.student.add_noise

    for wrong in (one_step_too_few, noised_too_little):
        assert differ(stock, draws(method, wrong, range(count, 2 * count))) < 1e-6


def test_fast_rollout_forwards(tmp_path):
    """A cycle of five at N=4. Stock 32; short 19.5 calls in the mean, one of twice the batch: the exit rung is uniform."""
    cycle = {"generator_update_interval": 5, "steps": 5}
    run(tmp_path, method=STOCK, **cycle)
    assert len(Toy.calls) == 32
    cycles = 40
    run(tmp_path, amd={"fast_rollout": True}, generator_update_interval=5, steps=5 * cycles)
    assert len(Toy.calls) / cycles == pytest.approx(19.5, abs=1.5)
    assert {size for name, size, _ in Toy.calls if name == "teacher"} == {8}, "both branches in one call"
    run(tmp_path, amd={"fast_rollout": True}, generator_update_interval=5, steps=5, dmd_denoising_steps=[1000])
    assert len(Toy.calls) == 4 * 2 + 4, "one rung: student, critic without graph, teacher, critic; and two per other step"


def test_one_teacher_call_says_what_two_say(tmp_path):
    run(tmp_path, amd={"fast_rollout": True}, steps=1)
    method = Probe.method
    batch = method.student.prepare_batch(method.student.dataloader[0], generator=None)
    x0, answers = torch.randn(4, 2, 3, 4, 4), []
    for fast in (False, True):
        method._fast = fast
        method.cuda_generator.manual_seed(3)
        answers.append(method._dmd_loss(x0, batch))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-7)
    uneven = copy.copy(batch)
    uneven.unconditional_dict = {"encoder_hidden_states": torch.zeros(4, 7)}
    assert joined_conditions(uneven) is None


def test_a_shared_rollout_is_scored_once(tmp_path):
    scored = []
    run(tmp_path, reward=lambda m, p: scored.append(1) or m.mean((1, 2, 3, 4)), amd={"fast_rollout": True}, steps=4)
    assert len(scored) == 4, "two steps for student and critic together, two for the critic alone"
    scored.clear()
    run(tmp_path, reward=lambda m, p: scored.append(1) or m.mean((1, 2, 3, 4)), amd={}, steps=4)
    assert len(scored) == 6
