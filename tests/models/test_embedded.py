"""Pipelines that are made here for embedded tasks."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.conditions import CHECKSUM
from amd_plugin.models.embedded import teacher_state
from amd_plugin.tasks import TASKS


def test_whichever_process_makes_it_makes_all_of_it(tiny, plugins, tmp_path, monkeypatch):
    """Its text encoders too, which transformers has only process 0 write."""
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path))
    config = tiny("model.width=32", "model.teacher.steps=1", name="digits_sdxl").config
    task = TASKS[config.data.task](**config.data.options)
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        found = load_backbone(config.model, task, 0, plugins.families())
        asked = found.conditions(torch.zeros(3, dtype=torch.long), lambda: task.prompts(torch.arange(3)))
    finally:
        dist.destroy_process_group()
    assert all(len(value) == 3 for value in asked.values())


def test_a_teacher_goes_on_where_it_was_interrupted(plugins, tmp_path, monkeypatch):
    """To the bit, network, average and text encoders; and a longer training goes on from a shorter one's constant rate."""
    from amd_plugin import recipe
    from amd_plugin.models.embedded import teacher
    from amd_plugin.models.embedded.pipelines import made_pipeline, trained_parts

    monkeypatch.setattr(teacher, "SAVE_EVERY", 2)
    chosen = "{steps: STEPS, batch_size: 4, learning_rate: 1.0e-3, decay: late, ema: 0.9, text: trained}"

    def made(folder, steps, stop=None):
        monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / folder))
        model = f"model.teacher={chosen.replace('STEPS', str(steps))}"
        loaded = recipe.load("digits_sdxl", plugins, (model, "evaluate.samples=100"))

        def log(step, loss):
            if step == stop:
                raise KeyboardInterrupt

        pipeline, component = made_pipeline(loaded.config.model, loaded.task, 0, plugins.families(), log)
        return trained_parts(pipeline, component)

    straight = made("straight", 8)
    for steps in (8, 5):
        try:
            made(f"after {steps}", steps, stop=5 if steps == 8 else None)
        except KeyboardInterrupt:
            pass
        resumed = made(f"after {steps}", 8)
        assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    assert any(name.startswith("text_encoder_2.") for name in straight)


def test_an_unfinished_teacher_is_that_of_its_prompts_and_of_no_other(plugins):
    from amd_plugin import recipe
    from amd_plugin.models.embedded.teacher import state_file

    late = "model.teacher={steps: 8, batch_size: 4, learning_rate: 1.0e-3, decay: late}"
    loaded = recipe.load("moving_digits", plugins, (late,))
    files = {
        state_file(loaded.config.model.model_copy(update=changed), loaded.task, 0)
        for changed in ({}, {"text_length": 6}, {"negative_prompt": "blurred"})
    }
    assert len(files) == 3


@pytest.mark.parametrize("change", ["name of step", "name of weights", "a bit of data", "no checksum", "another network"])
def test_an_unfinished_teacher_that_has_changed_begins_again_with_all_as_it_was(change, tmp_path, caplog):
    def made(width):
        torch.manual_seed(width)
        trained = torch.nn.ModuleList([torch.nn.Linear(3, width)])
        average, optimizer = torch.optim.swa_utils.AveragedModel(trained), torch.optim.AdamW(trained.parameters())
        for _ in range(2):
            trained[0](torch.ones(3)).sum().backward()
            optimizer.step()
        return trained, average, optimizer, torch.Generator().manual_seed(width)

    file = tmp_path / "unfinished.safetensors"
    teacher_state.save(file, 5, *made(4))
    other = made(6 if change == "another network" else 4)
    assert change == "another network" or teacher_state.load(file, 9, *other) == 5
    content = bytearray(file.read_bytes())
    place = {"name of step": content.index(b'"step"') + 1, "name of weights": content.index(b"trained.") + 1, "a bit of data": -1,
             "no checksum": content.index(CHECKSUM.encode())}.get(change)  # fmt: skip
    if place is not None:
        content[place] ^= 1
    file.write_bytes(content)
    trained, average, optimizer, draws = other = made(6 if change == "another network" else 4)
    parts = copy.deepcopy([trained.state_dict(), average.state_dict(), optimizer.state_dict()]), draws.get_state()
    assert teacher_state.load(file, 9, *other) == 0
    assert "the teacher's training begins again" in caplog.text
    after = [trained.state_dict(), average.state_dict(), optimizer.state_dict()], draws.get_state()
    torch.testing.assert_close(after, parts, rtol=0, atol=0)
