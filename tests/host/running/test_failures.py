"""A process that dies or hangs ends the run soon, is named, and leaves a checkpoint the run can go on from."""

import pytest

from amd_plugin.host import checkpoint
from tests.helpers.launchers import assert_same
from tests.helpers.processes import ROOT, run, torchrun
from tests.helpers.tiny_wan import train_here

SCRIPT = ROOT / "tests" / "helpers" / "failing.py"
SHARDED = "--set=distributed.teacher=zero3"


@pytest.mark.parametrize(("how", "bad"), [("dies", 1), ("hangs", 0)])
def test_a_process_that_does_not_answer_is_named(how, bad, wan, tmp_path):
    arguments = [*wan, SHARDED, "--set=distributed.timeout=8", "--output", "run"]
    code, printed = run([*torchrun(2), SCRIPT, *arguments], tmp_path, timeout=120, HOW=how, BAD=str(bad))
    assert code != 0
    assert f"no answer from process {bad} of 0 to 1" in " ".join(printed.split())
    saved = checkpoint.available(tmp_path / "run" / "checkpoints")
    assert saved[-1].name == "step-000001"


def test_a_process_that_does_not_answer_before_the_first_step_is_named(wan, tmp_path):
    arguments = [*wan, SHARDED, "--set=distributed.timeout=8", "--output", "run"]
    code, printed = run([*torchrun(2), SCRIPT, *arguments], tmp_path, HOW="hangs while it prepares", BAD="1")
    assert code != 0
    said = " ".join(printed.split())
    assert "no answer from process 1 of 0 to 1" in said and "Stopped before the first step" in said
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_while_it_opens_the_folder_is_named(wan, tmp_path):
    arguments = [*wan, "--set=distributed.timeout=8", "--output", "run"]
    code, printed = run([*torchrun(2), SCRIPT, *arguments], tmp_path, HOW="dies while it opens the folder", BAD="0")
    assert code != 0 and "Stopped before the first step" in " ".join(printed.split())
    assert "[rank1]: Traceback" not in printed  # torchrun has one of its own


def test_killed_while_it_saves_a_run_goes_on_from_the_checkpoint_before(wan, alone, tmp_path):
    arguments = [*wan, SHARDED, "--output", "run"]
    code, _ = run([*torchrun(2), SCRIPT, *arguments], tmp_path, HOW="dies while it saves", BAD="0")
    assert code != 0
    saved = checkpoint.available(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["step-000001"]
    train_here(wan, tmp_path / "run", "auto")
    assert_same(alone, tmp_path / "run")
