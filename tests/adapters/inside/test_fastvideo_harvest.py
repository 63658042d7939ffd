"""`rollouts: harvest`: one rollout per cycle in FastVideo's own trainer, with samples of the same distribution."""

import pytest
import torch
from test_fastvideo import CAUSAL, brightness, one_process, run, same  # noqa: F401  # a fixture
from toy_fastvideo import OURS, PROMPTS, STATE, STOCK, Probe, Toy

from amd_plugin.adapters.fastvideo_rollout import call_at, harvest, short_rollout
from amd_plugin.errors import InputError

HARVEST = {"rollouts": "harvest"}


class Alternating(Toy):
    """A student whose data have two batches in turn, with other prompts and texts."""

    def __init__(self, **options):
        super().__init__(**options)
        (first,) = self.dataloader
        others = [{"prompt": prompt.upper()} for prompt in PROMPTS]
        self.dataloader = [first, {"text": -first["text"], "info_list": others}]


def prompts_and_texts(tmp_path, every, **options):
    """The prompts of each scored batch, and the texts of each call of student and critic, in a run of two cycles."""
    seen, texts = [], []

    def reward(media, prompts):
        seen.append(prompts)
        return media.mean((1, 2, 3, 4))

    predict = Toy.predict_noise

    def recorded(self, x, timestep, batch, **named):
        if named["conditional"]:
            texts.append((self.name, batch.conditional_dict["encoder_hidden_states"].sum().item() > 0))
        return predict(self, x, timestep, batch, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "predict_noise", recorded)
        run(
            tmp_path, reward, student="test_fastvideo_harvest.Alternating", amd=HARVEST, generator_update_interval=every,
            steps=2 * every, **options,
        )  # fmt: skip
    return seen, texts


def test_each_rung_of_a_harvest_is_the_sample_of_a_rollout_to_it(tmp_path):
    run(tmp_path, method=STOCK, steps=2)
    method, drawn = Probe.method, set()
    batch = method.student.prepare_batch(method.student.dataloader[0], generator=None)
    for seed in range(20):
        method.cuda_generator.manual_seed(seed)
        short = short_rollout(method, batch, with_grad=False)[0]
        method.cuda_generator.manual_seed(seed)
        all_rungs = harvest(method, batch, None)
        assert torch.equal(all_rungs.samples[all_rungs.rung], short)
        assert torch.equal(call_at(method, all_rungs.x, all_rungs.rung, batch, with_grad=True), short)
        assert all_rungs.rung not in {all_rungs.rung_of_fake_score(update) for update in range(9)}
        assert {all_rungs.rung_of_fake_score(update) for update in range(3)} | {all_rungs.rung} == {0, 1, 2, 3}
        drawn.add(all_rungs.rung)
    assert drawn == {0, 1, 2, 3}


def test_forwards_and_scores_of_a_cycle(tmp_path):
    """1 + 5 updates at N=4: one rollout, the student's last call again, two teacher calls, and those of the critic."""
    scored = []
    reward = lambda m, p: scored.append(1) or m.mean((1, 2, 3, 4))  # noqa: E731
    for fast, teacher_calls in ((False, 2), (True, 1)):
        amd = {**HARVEST, "fast_rollout": fast}
        run(tmp_path, reward, amd=amd, generator_update_interval=5, steps=10)
        assert len(Toy.calls) == 2 * (4 + 1 + teacher_calls + 1 + 5)
    assert len(scored) == 2 * 2 * 4, "each rung once"


def test_samples_keep_their_prompts(tmp_path):
    """Three batches come in a cycle; all its calls have the first one's texts, whose samples were harvested."""
    seen, texts = prompts_and_texts(tmp_path, 3)
    first, second = {name: set() for name in ("student", "critic", "teacher")}, {}
    half = len(texts) // 2
    for part, calls in ((first, texts[:half]), (second, texts[half:])):
        for name, positive in calls:
            part.setdefault(name, set()).add(positive)
    assert len(texts) == 2 * (4 + 1 + 1 + 1 + 3)
    assert all(len(values) == 1 for part in (first, second) for values in part.values())
    assert first["student"] != second["student"] and {tuple(prompts) for prompts in seen[: len(seen) // 2]} == {tuple(seen[0])}
    assert first["student"] == first["critic"] == first["teacher"]


@pytest.mark.parametrize("memory", [{}, {"memory_share": 0.5}], ids=str)
def test_resumed_within_a_cycle_equals_straight(tmp_path, memory):
    first, again = tmp_path / "a", tmp_path / "b"
    first.mkdir(), again.mkdir()
    options = {"amd": HARVEST | memory, "callbacks": STATE, "steps": 9, "generator_update_interval": 3, "save": 4}
    straight = run(first, brightness, **options)
    updates = Probe.method.objective.state_dict()
    resumed = run(again, brightness, **options, resume=str(first / "checkpoint-4"))
    assert resumed[3][0]["step"] == 5
    assert same(straight[0], resumed[0]) and same(straight[1][4:], resumed[1]) and torch.equal(straight[2], resumed[2])
    assert Probe.method.objective.state_dict() == updates and len(updates["rewards"]["updates"]) == 4, "statistics by rung"


def test_equal_rewards_are_dmd_with_the_same_harvest(tmp_path):
    plain = run(tmp_path, amd=HARVEST)
    ours = run(tmp_path, lambda m, p: torch.ones(4), amd=HARVEST)
    assert torch.equal(plain[2], ours[2]), "the stream of random numbers"
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amd": {"rollouts": "often"}}, "method.amd.rollouts: must be one of fresh, harvest, got 'often'"),
        ({"amd": HARVEST, "dmd_denoising_steps": [1000]}, "method.amd.rollouts: harvest needs a student of several steps"),
        ({"amd": HARVEST, "rollout_mode": "data_latent"}, "method.amd.rollouts: harvest needs rollout_mode: simulate"),
        ({"amd": HARVEST, "method": OURS.replace("AMDMethod", "AMDSelfForcingMethod"), **CAUSAL}, "SelfForcingMethod"),
    ],
)
def test_what_has_no_rollouts_to_harvest_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, **options)
