"""Checkpoints: complete or not there, and never a pickle."""

import json

import pytest
import torch

from amd_plugin import atomic
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import checkpoint, run
from amd_plugin.host.checkpoint import files


@pytest.fixture
def saved(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tensors = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    return checkpoint.save(tmp_path, 7, tensors, {"objective": {"updates": 3}}, keep=2), tensors


def test_round_trip(saved):
    path, tensors = saved
    got, state = checkpoint.load(path)
    assert path.name == "step-000007" and state == {"step": 7, "objective": {"updates": 3}}
    assert torch.equal(got["network"]["weight"], tensors["network"]["weight"])
    torch.optim.Adam(torch.nn.Linear(3, 2).parameters()).load_state_dict(got["optimizer"])
    assert got["optimizer"]["state"].keys() == tensors["optimizer"]["state"].keys()
    assert torch.equal(got["optimizer"]["state"][0]["exp_avg"], tensors["optimizer"]["state"][0]["exp_avg"])
    assert got["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}


def test_what_is_wrong_with_a_checkpoint_is_said(saved, tmp_path):
    path, _ = saved
    with pytest.raises(InputError, match="no such folder"):
        checkpoint.load(tmp_path / "step-000009")
    weights = path / "network.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"network.safetensors should have \d+ bytes"):
        checkpoint.load(path)
    weights.write_bytes(whole)
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(InputError, match="Upgrade"):
        checkpoint.load(path)
    manifest.write_text(json.dumps({**content, "files": content["files"] | {300 * "a": 1}}))
    with pytest.raises(InputError, match="must be names in this folder"):
        checkpoint.load(path)
    manifest.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(path)
    manifest.unlink()
    with pytest.raises(InputError, match="not written to its end"):
        checkpoint.load(path)
    assert checkpoint.available(tmp_path) == []
    with pytest.raises(InputError, match=r"is no checkpoint \(no manifest.json\). Name a folder in the checkpoints of a run"):
        checkpoint.load(path.parent)  # as whoever names a folder of runs for --resume


def test_only_the_newest_are_kept_and_broken_ones_do_not_count(saved, tmp_path):
    path, tensors = saved
    (path / "manifest.json").unlink()
    for step in (8, 9, 10):
        checkpoint.save(tmp_path, step, tensors, {}, keep=2)
    assert [p.name for p in checkpoint.available(tmp_path)] == ["step-000009", "step-000010"]


def test_an_old_one_that_is_half_removed_has_no_name(saved, tmp_path, monkeypatch):
    """Each save and each start said of it that it was not written to its end."""
    _, tensors = saved
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", lambda *arguments, **options: None)  # as if the process were killed there
        checkpoint.save(tmp_path, 8, tensors, {}, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000008"] and [*tmp_path.glob(".step-000007.*")]
    atomic.sweep(tmp_path, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000008"]


def test_a_crash_while_writing_leaves_the_old_one(saved, tmp_path, monkeypatch):
    _, tensors = saved

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 8, tensors, {}, keep=2)
    assert [p.name for p in checkpoint.available(tmp_path)] == ["step-000007"]


def test_a_run_that_cannot_save_says_so(tiny, plugins, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(RunError, match="the checkpoint of step 1 is not saved: OSError: No space left") as caught:
        run.train(tiny("train.checkpoint_every=1", objective="dmd"), plugins, tmp_path / "run")
    assert "it could not be saved" in str(caught.value)


def test_the_newest_is_the_one_with_the_largest_number(tmp_path):
    """Names have six digits, so that step 1 000 000 comes before step 999 999 in the order of letters."""
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoint.save(tmp_path, step, {"part": {"w": torch.zeros(1)}}, {}, keep=3)
    assert [files.step_of(path) for path in checkpoint.available(tmp_path)] == [999_999, 1_000_000, 1_000_001]
    assert files.step_of(checkpoint.find(tmp_path)) == 1_000_001
    assert files.step_of(checkpoint.find(tmp_path, "1000000")) == 1_000_000
