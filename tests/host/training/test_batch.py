"""Groups exist in every joined batch, however its rows are shared out; real pictures are the next rows of their data."""

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.data.prompt_rows import PromptRows
from amd_plugin.data.prompts import Prompts
from amd_plugin.data.row_readers import StreamRows
from amd_plugin.host import run
from amd_plugin.host.training import scoring
from amd_plugin.host.training.batch import Batch, BatchSource, micro_batches, process_rows
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.objectives.reward_statistics import group_ids
from tests.helpers.prompt_files import PROMPTS, image_folder

SHARED = ("train.batch_size=12", "train.group_size=6")


@pytest.mark.parametrize("rollouts", ["fresh", "harvest"])
@pytest.mark.parametrize("group_size", [1, 2, 3, 6, 12])
def test_groups_stand_in_a_row_and_batches_follow_each_other(group_size, rollouts, tiny, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(f"p{index}" for index in range(1000)))
    overrides = ("train.batch_size=12", f"train.group_size={group_size}", f"train.rollouts={rollouts}", "train.rollout_sets=2")
    train = tiny(*overrides, objective="dmd").config.train
    source, seen = BatchSource(train, Prompts(source=str(tmp_path / "p.txt")), (2,), 3, torch.device("cpu")), []
    for position in range(5):
        step, update = divmod(position, train.fake_updates + 1 if rollouts == "fresh" else 2)
        batch = Batch(source, step, "student", update)
        groups = batch.labels.view(-1, group_size)
        assert (groups == groups[:, :1]).all() and batch.position == position
        seen.extend(groups[:, 0].tolist())
    assert seen == list(range(5 * 12 // group_size)), "every row once, in order"


@pytest.mark.parametrize("accumulation", [1, 4, 12])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_group_may_span_ranks_and_micro_batches(ranks, accumulation, tiny, plugins):
    """Groups of six in shares of 12 / (ranks x accumulation): the same rows, in the same order, with the same advantages."""
    if accumulation * ranks > 12:
        accumulation = 6
    whole = Trainer(tiny(*SHARED), plugins, Accelerator(cpu=True))
    batch = whole.rollouts.batch(whole.step, "student", 0)
    rollout = whole.forward.rollout(batch, slice(0, 12), grad=False).x0
    expected = whole.rollouts.advantage(batch, whole.scoring.submit(batch, slice(0, 12), [rollout]))

    trainer = Trainer(tiny(*SHARED, f"train.accumulation={accumulation}"), plugins, Accelerator(cpu=True))
    covered, rewards = [], []
    for rank in range(ranks):
        rows = process_rows(12, rank, ranks)
        parts = micro_batches(rows, accumulation)
        covered += [row for part in parts for row in range(part.start, part.stop)]
        media = torch.cat([trainer.backbone.decode(trainer.forward.rollout(batch, part, grad=False).x0) for part in parts])
        labels = batch.labels[rows]
        rewards.append(trainer.rewards(media, trainer.task.prompts(labels), **trainer.task.columns(labels)).total)
    assert covered == list(range(12))
    torch.testing.assert_close(trainer.objective.advantage(torch.cat(rewards), batch.labels), expected, rtol=1e-4, atol=1e-4)


def test_a_process_asks_for_the_prompts_of_its_own_rows_only(tiny, plugins, monkeypatch):
    """Others' lie behind its place in a stream, which would have to be read from the start for them."""
    trainer, asked = Trainer(tiny(*SHARED), plugins, Accelerator(cpu=True)), []
    batch, prompts = trainer.rollouts.batch(trainer.step, "student", 0), trainer.task.prompts
    rollout = trainer.forward.rollout(batch, slice(0, 12), grad=False).x0
    monkeypatch.setattr(trainer.task, "prompts", lambda labels: (asked.append(len(labels)), prompts(labels))[1])
    handed = trainer.scoring.submit(batch, slice(6, 12), [rollout[6:]])
    assert asked == [6] and handed.groups.tolist() == group_ids(prompts(batch.labels[6:]), 6).tolist()
    monkeypatch.setattr(scoring, "all_gather_scores", lambda *scores: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.rollouts.advantage(batch, handed)
    assert asked == [6], "the others' are gathered"


@pytest.mark.parametrize("streaming", [False, True])
def test_real_pictures_are_the_next_rows_and_a_stream_is_read_once(streaming, tmp_path, monkeypatch):
    source = str(image_folder(tmp_path / "images", 40))
    how = {"image_column": "image", "streaming": streaming}
    order = [row.prompt for row in PromptRows(source, **how).rows(0, 40)]
    begun, original = [], StreamRows.endless

    def endless(self, start):
        begun.append(start)
        return original(self, start)

    monkeypatch.setattr(StreamRows, "endless", endless)
    task, draws = Prompts(source=source, **how), torch.Generator()
    for position in range(10):
        task.prompts(task.draw_labels(position, 2, draws))
        for count in (4, 2):
            images, labels = task.training_data(count, draws, position, (8, 8))
            assert images.shape == (count, 3, 8, 8) and -1 <= images.min() < images.max() <= 1
            assert labels.tolist() == list(range(position * count, (position + 1) * count))
            assert task.prompts(labels) == order[position * count : (position + 1) * count]
    assert len(begun) <= 3 * streaming
    late = Prompts(source=source, **how)
    assert torch.equal(late.training_data(4, draws, 9, (8, 8))[0], task.training_data(4, draws, 9, (8, 8))[0])


def test_training_on_a_stream_of_pictures_resumes_to_the_bit(piped, plugins, tmp_path):
    image_folder(tmp_path / "images")
    recipe = piped(
        "sdxl", f"data.source={tmp_path / 'images'}", "data.image_column=image", "data.streaming=true", "train.rollout=data",
        "train.fake_updates=1", "train.max_steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=9", "rewards=[]",
        "objective.gan_weight=0.1", objective="dmd2",
    )  # fmt: skip
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    once = run.train(recipe, plugins, straight)
    assert once == run.train(recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000001"))
    for part in ("student", "fake_score", "discriminator", "ema"):
        one, two = ((d / "checkpoints" / "step-000003" / f"{part}.safetensors").read_bytes() for d in (straight, resumed))
        assert one == two, part
    assert len(PROMPTS) == 7  # fewer than the 8 pictures of a batch: epochs were crossed on the way
