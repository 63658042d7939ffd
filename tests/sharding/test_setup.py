"""What stands in the way of sharding is said, with what to do."""

import builtins
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from amd_plugin.default_plugins import host as baseline
from amd_plugin.errors import InputError, MissingDependency
from amd_plugin.sharding.setup import deepspeed_for


@pytest.fixture
def accelerator(monkeypatch):
    """One of two processes, as far as it knows."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return SimpleNamespace(device=torch.device("cpu"), num_processes=2, local_process_index=0)


def test_without_deepspeed(accelerator, monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **more):
        if name == "deepspeed":
            raise ImportError("No module named 'deepspeed'")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"needs deepspeed.* set teacher and trained to none"):
        deepspeed_for(accelerator)


def test_processes_without_a_group(accelerator, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE is 2.*InitProcessGroupKwargs\(backend='gloo'\)"):
        deepspeed_for(accelerator)


def test_accelerate_and_torch_that_disagree(accelerator):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"accelerate sees 2 processes, torch.distributed 1"):
            deepspeed_for(accelerator)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("options", [{}, {"distributed": {}}, {"distributed": {"teacher": "none"}}])
def test_nothing_is_sharded_unless_asked_for(options, accelerator):
    module = torch.nn.Linear(2, 2)
    assert baseline.distill_prepare_frozen(module, accelerator, options, None) is module
    assert not hasattr(module.weight, "ds_tensor")
