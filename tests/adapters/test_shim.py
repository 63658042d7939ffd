"""Any argparse trainer: two calls, and the example that makes them."""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from amd_plugin import AMDObjective, DMDObjective
from amd_plugin.adapters import shim
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import EVERYTHING
from tests.helpers.commands import Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_trainer.py"


def make(*words, **host):
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1)
    shim.add_arguments(parser)
    return shim.make_objective(parser.parse_args(words), **host)


def test_defaults_are_the_factorys():
    objective = make()
    assert isinstance(objective, AMDObjective) and vars(objective).keys() == vars(AMDObjective()).keys()
    assert objective.strength == AMDObjective().strength and objective.side == AMDObjective().side
    assert type(make("--objective", "dmd")) is DMDObjective


def test_options_have_the_types_of_the_signature():
    words = ["--amd.strength", "2.5e-1", "--amd.side", "both", "--amd.guidance_sigma", "[0.1, 0.9]"]
    objective = make(*words, "--amd.strength=0", "--amd.sharpening=0", offers=EVERYTHING)
    assert (objective.strength, objective.side) == (0, "both")
    assert tuple(objective.guidance_sigma) == (0.1, 0.9)
    assert make("--amd.strength", "2.5e-1").strength == 0.25


def test_the_trainers_own_values_give_way_to_the_users():
    assert make(guidance_scale=3.0).guidance_scale == 3.0
    assert make("--amd.guidance_scale", "2", guidance_scale=3.0).guidance_scale == 2
    assert make("--objective", "dmd", guidance_scale=3.0, strength=0.1).guidance_scale == 3.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--amd.strength", "1"], r"--amd\.strength: must be less than 1"),
        (["--amd.strength", "much"], r"--amd\.strength: .*got 'much'"),
        (["--amd.strength", "true"], r"--amd\.strength: .*got True"),
        (["--amd.side", "left"], r"--amd\.side"),
        (["--objective", "dmd", "--amd.strength", "0.5"], "belongs to objective 'amd'"),
    ],
)
def test_wrong_options(words, message):
    with pytest.raises(InputError, match=message):
        make(*words)


@pytest.mark.parametrize(
    ("words", "need"),
    [
        (["--objective", "decoupled_dmd"], "guidance_range"), (["--objective", "dmd2"], "discriminator"),
        (["--amd.match_sigma", "[0.1, 0.9]"], "match_range"), (["--amd.memory_share", "0.3"], "replay"),
        (["--amd.advantage_guidance", "8"], "fake_score_outcome"),
    ],
)  # fmt: skip
def test_a_trainer_that_says_nothing_of_its_offers_is_asked_for_nothing_that_few_trainers_have(words, need):
    with pytest.raises(InputError, match=rf"needs\.{need}: this host does not offer"):
        make(*words, guidance_scale=2.0)
    assert make(*words, guidance_scale=2.0, offers=EVERYTHING).needs.missing(EVERYTHING) == {}


SMALL = ["--steps", "2", "--teacher-steps", "20", "--groups", "2"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """``example("--option", ...)``: how the example ended, in a process of its own."""
    server = Server("import sklearn.neighbors, torch, amd_plugin.adapters.shim")
    program = f"import runpy\nrunpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    yield lambda *words: server.run(program, *SMALL, *words, cwd=tmp_path_factory.getbasetemp())
    server.close()


def test_the_example_runs_with_another_objective_and_is_short(example):
    done = example("--objective", "dmd")
    assert done.code == 0, done.err
    assert "of the student's samples show their digit" in done.out and len(EXAMPLE.read_text().splitlines()) < 150


def test_the_example_goes_on_from_a_checkpoint(example, tmp_path):
    straight, resumed = tmp_path / "straight.pt", tmp_path / "resumed.pt"
    for words in (
        ["--steps", "2", "--checkpoint", straight],
        ["--steps", "1", "--checkpoint", resumed],
        ["--checkpoint", resumed],
    ):
        done = example(*words)
        assert done.code == 0 and "of the student's samples show their digit" in done.out, done.err
    a, b = (torch.load(file, weights_only=True) for file in (straight, resumed))
    assert a["step"] == b["step"] == 2 and a["objective"] == b["objective"]
    assert all(torch.equal(a["parts"][0][name], value) for name, value in b["parts"][0].items())


def test_the_examples_groups_have_samples_of_all_ranks(example):
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", EXAMPLE, "--group-size", "1"]
    done = subprocess.run([sys.executable, *command, *SMALL], capture_output=True, text=True)
    assert done.returncode == 0 and "no prompt occurs twice" not in done.stderr, done.stderr
    assert "no prompt occurs twice" in example("--group-size", "1", "--groups", "1").err


def test_the_example_says_what_is_wrong(example):
    done = example("--amd.strength", "2")
    assert done.code == 2 and "--amd.strength: must be less than 1" in done.err and "Traceback" not in done.err


@dataclass
class Settings:
    steps: int = 1
    rate: float = 1e-3


def parsed(tmp_path, content, *words):
    (tmp_path / "mine.yaml").write_text(content)
    return shim.parse(Settings, args=["--config", str(tmp_path / "mine.yaml"), *words])


def test_settings_and_objective_come_from_one_file_and_the_command_line_wins(tmp_path):
    settings, args = parsed(
        tmp_path, "steps: 7\nobjective: amd\namd.strength: 0.25\namd.guidance_sigma: [0.1, 0.9]\n", "--rate=2"
    )
    objective = shim.make_objective(args, offers=EVERYTHING)
    assert settings == Settings(7, 2.0) and objective.strength == 0.25 and tuple(objective.guidance_sigma) == (0.1, 0.9)
    _, args = parsed(tmp_path, "amd.strength: 0.25\n", "--amd.strength", "0.5")
    assert shim.make_objective(args).strength == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [("stepz: 7", "stepz"), ("- 1", "must contain a YAML mapping"), ("steps: [", "while parsing"), (None, "No such file")],
)
def test_a_file_that_cannot_be_used_is_a_message(content, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        if content is None:
            shim.parse(Settings, args=["--config", str(tmp_path / "none.yaml")])
        parsed(tmp_path, content)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_an_objective_that_a_file_misspells_is_a_message(tmp_path):
    _, args = parsed(tmp_path, "objective: adm")
    with pytest.raises(InputError, match="adm"):
        shim.make_objective(args)
