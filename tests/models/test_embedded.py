"""Pipelines that are made here for embedded tasks."""

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from amd_plugin.models.backbone import load_backbone
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
