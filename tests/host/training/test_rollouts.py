"""Rollouts that are harvested: the samples of fresh rollouts, shared out evenly, by fewer calls."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.errors import InputError
from amd_plugin.host.training.rollouts import Harvest
from amd_plugin.host.training.trainer import Trainer
from tests.helpers.training import assert_close, trained, weights

HARVEST = ("train.rollouts=harvest", "model.student_steps=4", "train.fake_updates=5")


def harvest_of(trainer, sets=1, step=0):
    batches = [trainer.rollouts.batch(step, "rollouts", index) for index in range(sets)]
    return batches, Harvest(trainer.forward, batches, trainer.rollouts.micro_batches, 0, step)


def test_harvested_samples_have_the_tilt_of_their_own_rung(tiny, plugins, monkeypatch):
    trainer = trained(tiny, plugins, *HARVEST, "objective.kl=0.5", cycles=2)
    budget, tilts = trainer.objective._kl, []
    weigh = type(trainer.objective).sharpening_weights

    def weights_of(self, advantage, sigma=None, rungs=None):
        whole = weigh(self, advantage, sigma, rungs)
        expected = torch.exp(-budget.tilts(rungs).to(advantage) * advantage)
        torch.testing.assert_close(whole, expected / expected.mean())
        tilts.append({budget.tilt(rung) for rung in rungs.tolist()})
        return whole

    monkeypatch.setattr(type(trainer.objective), "sharpening_weights", weights_of)
    trainer.cycle()
    assert len(tilts) == 5 and all(len(of_turn) == 4 for of_turn in tilts), "all rungs are in each batch"


@pytest.mark.parametrize("transition", ["sde", "ode"])
def test_a_descent_gives_what_a_rollout_to_each_rung_gives(tiny, plugins, transition):
    trainer = trained(tiny, plugins, *HARVEST, f"model.transition={transition}", cycles=1)
    batch, rows = trainer.rollouts.batch(3, "rollouts", 0), slice(4, 12)
    exits = trainer.forward.descent(batch, rows)
    assert len(exits) == 4
    for rung, (x, x0) in enumerate(exits):
        batch.rungs = torch.full((16,), rung)
        alone = trainer.forward.rollout(batch, rows, grad=False)
        assert torch.equal(x, alone.x) and torch.equal(x0, alone.x0)


@pytest.mark.parametrize("sets", [1, 2])
def test_samples_are_shared_out_evenly_and_the_student_is_asked_about_those_that_no_update_saw(tiny, plugins, sets):
    trainer = trained(tiny, plugins, *HARVEST, "train.batch_size=32", "train.group_size=2", cycles=0)
    students = Counter()
    for step in range(40):
        _, harvest = harvest_of(trainer, sets, step)
        turns = [("student", 5), *(("fake score", update) for update in range(5))]
        drawn = [harvest.samples(*turn) for turn in turns]
        for batch, _ in drawn:
            assert set(Counter(batch.rungs.tolist()).values()) == {8}, "each turn has all rungs equally often"
            pairs = batch.rungs.reshape(-1, 2), batch.labels.reshape(-1, 2)
            assert all(torch.equal(pair[:, 0], pair[:, 1]) for pair in pairs), "a group has one rung and one prompt"
        samples = [torch.cat([exit.x0 for exit in exits]) for _, exits in drawn]
        for first, one in enumerate(samples):
            for second, other in enumerate(samples[first + 1 :], first + 1):
                same = (one == other).all(1)
                repeats = first > 0 and second - first == 4 * sets - 1
                assert same.all() if repeats else not same.any()
        students.update(drawn[0][0].rungs[::2].tolist())
    assert set(students.values()) == {40 * 16 // 4}


def test_all_sets_of_rollouts_differ_however_few_updates_share_them(tiny, plugins):
    trainer = trained(tiny, plugins, *HARVEST, "train.fake_updates=1", "train.rollout_sets=3", cycles=0)
    batches, _ = harvest_of(trainer, sets=3)
    assert len({batch.normal("rung 0").sum().item() for batch in batches}) == 3
    assert len({tuple(batch.labels.tolist()) for batch in batches}) == 3


def test_labels_rungs_and_noise_belong_to_the_samples(tiny, plugins):
    trainer = trained(tiny, plugins, *HARVEST, "train.accumulation=4", cycles=1)
    batches, harvest = harvest_of(trainer, sets=2)
    whole = [trainer.forward.descent(batch, slice(0, 16)) for batch in batches]
    for update in range(5):
        batch, exits = harvest.samples("fake score", update)
        samples = torch.cat([exit.x0 for exit in exits])
        for row in range(16):
            [of_set] = {
                index for index in range(2)
                if torch.allclose(whole[index][batch.rungs[row]].x0[row], samples[row], atol=1e-5)
            }  # fmt: skip
            assert batch.labels[row] == batches[of_set].labels[row]
    assert len({harvest.samples("fake score", update)[0].normal("noise").sum().item() for update in range(5)}) == 5


def test_the_student_repeats_its_last_call_only(tiny, plugins):
    """The graph's x0 is the sample that was scored: from the kept input, at each sample's own rung."""
    trainer = trained(tiny, plugins, *HARVEST, cycles=1)
    trainer.rollouts.begin(1)
    batch, [(x, x0)], advantage, _ = trainer.rollouts.for_student(1)
    again = trainer.forward.leave(x, batch, slice(0, 16), grad=True).x0
    assert again.requires_grad and len(set(batch.rungs.tolist())) > 1
    torch.testing.assert_close(again, x0)
    assert advantage is not None and len(advantage) == 16


def rows_of_a_cycle(trainer, cycles=8):
    rows = Counter()
    for name in ("student", "fake_score", "teacher"):

        def record(module, inputs, name=name):
            rows[name] += len(inputs[0]) / trainer.train.batch_size / cycles

        getattr(trainer, name).network.register_forward_pre_hook(record)
    for _ in range(cycles):
        trainer.cycle()
    return rows


@pytest.mark.parametrize("objective", ["dmd", "amd"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_cycle_of_four_steps_and_five_updates_takes_thirteen_forwards(tiny, plugins, objective, accumulation):
    overrides = (*HARVEST, "objective.guidance_scale=2", f"train.accumulation={accumulation}")
    rows = rows_of_a_cycle(Trainer(tiny(*overrides, objective=objective), plugins, Accelerator(cpu=True)))
    assert rows == {"student": 5, "fake_score": 6, "teacher": 2}


def test_micro_batches_of_a_fresh_rollout_repeat_the_last_call_only(tiny, plugins):
    fresh = ("model.student_steps=4", "train.rollouts=fresh")
    one, several = (
        rows_of_a_cycle(trained(tiny, plugins, *fresh, f"train.accumulation={parts}", cycles=0)) for parts in (1, 4)
    )
    assert several["student"] == pytest.approx(one["student"] + 1)


@pytest.mark.parametrize("sets", [1, 3])
def test_samples_are_scored_once(tiny, plugins, sets):
    trainer, scored = trained(tiny, plugins, *HARVEST, f"train.rollout_sets={sets}", cycles=0), []
    submit = trainer.scoring.rewards.submit
    trainer.scoring.rewards.submit = lambda *media: (scored.append(1), submit(*media))[1]
    trainer.cycle()
    assert len(scored) == min(6, 4 * sets)


@pytest.mark.parametrize("overrides", [(), ("model.student_steps=1",), ("train.rollout_sets=2",)])
def test_rewards_in_processes_of_their_own_change_nothing(tiny, plugins, overrides):
    here, there = (
        trained(tiny, plugins, *HARVEST, *overrides, f"rewards=[{{name: classifier, pool: {pool}}}]", cycles=2)
        for pool in (0, 1)
    )
    there.rewards.close()
    assert_close(weights(here), weights(there), 0)


def test_one_step_and_one_set_give_all_turns_the_same_samples(tiny, plugins):
    trainer = trained(tiny, plugins, *HARVEST, "model.student_steps=1", cycles=0)
    _, harvest = harvest_of(trainer)
    samples = [harvest.samples(*turn)[1][0].x0 for turn in (("student", 5), ("fake score", 0), ("fake score", 4))]
    assert torch.equal(samples[0], samples[1]) and torch.equal(samples[0], samples[2])
    assert rows_of_a_cycle(trainer)["student"] == 2


@pytest.mark.parametrize(
    ("overrides", "harvests"),
    [((), False), (("model.student_steps=2",), True), (("model.student_steps=2", "train.rollout=data"), False),
     (("model.student_steps=2", "train.rollouts=fresh"), False), (("train.rollouts=harvest",), True)],
)  # fmt: skip
def test_students_of_several_steps_harvest_by_default(tiny, overrides, harvests):
    config = tiny(*overrides).config
    assert config.train.harvests(config.model.student_steps) == harvests


def test_a_rollout_that_starts_at_the_exit_step_is_not_harvested(tiny):
    with pytest.raises(InputError, match=r"train.rollouts: shares rollouts from noise"):
        tiny(*HARVEST, "train.rollout=data")
