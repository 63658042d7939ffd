"""A process that dies or hangs ends the run soon, is named, and leaves a checkpoint the run can go on from."""

import pytest

from amd_plugin.host import checkpoint
from tests.helpers.launchers import assert_same
from tests.helpers.processes import ROOT, forked, run, torchrun
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


ON_MAIN = """
import os, sys
from pathlib import Path
from accelerate import Accelerator
from amd_plugin.errors import InputError, MissingDependency, RunError
from amd_plugin.host.running.accelerator import end, on_main
accelerator, rank, said = Accelerator(cpu=True), int(os.environ["RANK"]), []

def fails(error):
    raise error

for error in (InputError("a"), MissingDependency("b"), RunError("c"), OSError(28, "full", "d"), KeyError("e")):
    try:
        on_main(accelerator, lambda: fails(error))
    except Exception as found:
        said.append(f"{type(found).__name__}: {found}")
Path(f"said-{rank}.txt").write_text(chr(10).join(said))
accelerator.wait_for_everyone(), end(accelerator)
"""


def test_whatever_the_main_process_raises_the_others_raise(tmp_path):
    """Otherwise they wait for it until a launcher or a watchdog ends them."""
    (tmp_path / "each.py").write_text(ON_MAIN)
    code, printed = run([*forked(2), "each.py"], tmp_path)
    assert code == 0, printed
    first, second = ((tmp_path / f"said-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first[:4] == second[:4] and [line.partition(":")[0] for line in first[:4]] == [
        "InputError", "MissingDependency", "RunError", "RunError",
    ]  # fmt: skip
    assert first[4:] == ["KeyError: 'e'"] and second[4:] == ["RunError: process 0: KeyError: 'e'"]
