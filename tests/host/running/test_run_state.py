"""What state.json of a run must hold."""

import json
import shutil

import pytest

from amd_plugin.host import checkpoint, run
from amd_plugin.host.running.run_check import examine_run
from amd_plugin.host.running.state_schema import RunState
from amd_plugin.json_files import parse

WHOLE = {"step": 4, "rest": {}, "recipe": {}, "objective": {}, "plugins": {}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"evaluations": [{"held_out/score": 0.5}]}, "evaluations.0: .*must have a step"),
        ({"evaluations": [{"step": float("nan")}]}, "evaluations.0: .*must have a step"),
        ({"evaluations": [{"step": "4"}]}, "evaluations.0.step"),
        ({"log": {"lines": -1}}, "log.lines"),
        ({"log": {"window": {"loss": [1.0]}}}, "log.window.loss.1"),
        ({"skipped": [1.5]}, "skipped.0"),
        ({"plugins": []}, "plugins"),
        ({"step": -1}, "step"),
        ({"step": 2**60}, "step"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    assert parse(json.dumps(WHOLE).encode(), RunState).step == 4
    with pytest.raises(ValueError, match=message):
        parse(json.dumps(WHOLE | wrong).encode(), RunState)


def test_doctor_reads_the_state_of_every_checkpoint(tmp_path, plugins):
    """A file can be as it was written, by its checksum, and still hold nothing that a run can take up."""
    folder = tmp_path / "checkpoints"
    state = {name: value for name, value in WHOLE.items() if name not in ("step", "rest")}
    checkpoint.save(folder, 1, {}, state, keep=2)
    checkpoint.save(folder, 2, {}, state | {"evaluations": [{"held_out/score": 0.5}]}, keep=2)
    found = {finding.what: finding for finding in examine_run(tmp_path, plugins)}
    assert found["step-000001"].ok
    assert not found["step-000002"].ok and "state.json cannot be read: evaluations.0" in found["step-000002"].found


def test_a_checkpoint_that_a_run_at_work_removes_meanwhile_is_no_damage(tmp_path, plugins, monkeypatch):
    folder, verify = tmp_path / "checkpoints", checkpoint.verify
    state = {name: value for name, value in WHOLE.items() if name not in ("step", "rest")}
    for step in (1, 2):
        checkpoint.save(folder, step, {}, state, keep=2)

    def while_it_reads(path):
        if path.name == "step-000001":
            checkpoint.save(folder, 3, {}, state, keep=2)
        verify(path)

    monkeypatch.setattr(checkpoint, "verify", while_it_reads)
    found = {finding.what: finding for finding in examine_run(tmp_path, plugins)}
    assert found["step-000001"].ok and found["step-000001"].found == "was removed by the run meanwhile"
    assert found["step-000002"].ok and found["step-000002"].found == "is whole"


def test_doctor_reads_all_that_a_run_has_written_and_names_the_rest(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny("train.checkpoint_every=2", "train.keep_checkpoints=2"), plugins, folder)
    checkpoint.set_aside(folder / "checkpoints", 2)
    aside = "set-aside/step-000004"
    checkpoint.save(folder / "nonfinite", 3, {}, {}, keep=1)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "drawn.json").write_text("{}")
    (folder / "trackers.json").write_text("{}")
    whole = {finding.what: finding for finding in examine_run(folder, plugins)}
    assert all(finding.ok for finding in whole.values()) and whole["not looked at"].found == "pictures in samples"
    damages = {
        "student": "student/scheduler/scheduler_config.json", aside: f"checkpoints/{aside}/ema.safetensors",
        "nonfinite/step-000003": "nonfinite/step-000003/state.json", "evaluation/drawn.json": "evaluation/drawn.json",
        "trackers.json": "trackers.json", "samples/latest.safetensors": "samples/latest.safetensors",
    }  # fmt: skip
    for file in damages.values():
        (folder / file).write_bytes(b"x")
    found = {finding.what: finding for finding in examine_run(folder, plugins)}
    assert {what for what, finding in found.items() if not finding.ok} == set(damages) - {aside}, found
    assert found[aside].found == "is damaged, and nothing needs it"
    assert "scheduler_config.json should have" in found["student"].found and "amd-plugin export" in found["student"].found
    (folder / "student" / "checksums.json").unlink()
    assert {finding.what: finding for finding in examine_run(folder, plugins)}["student"].found.startswith("not looked at")
    shutil.rmtree(folder / "student")
    found = {finding.what: finding for finding in examine_run(folder, plugins)}
    assert not found["student"].ok and "No such file" in found["student"].found
