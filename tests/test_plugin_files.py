"""Rewards, objectives and samplers of one's own in a plain file, as they are typed."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from amd_plugin import plugin_files
from tests.helpers.documentation import ROOT, blocks
from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY

OWN = """
from dataclasses import dataclass

import amd_plugin


@dataclass
class Near:
    reach: float = 1.0

    def __call__(self, media, prompts):
        return -(media.norm(dim=1) - self.reach).abs()


class Halved(amd_plugin.DMDObjective):
    pass


@amd_plugin.hookimpl
def distill_rewards():
    return {"near": Near}


@amd_plugin.hookimpl
def distill_objectives():
    return {"halved": Halved}


@amd_plugin.hookimpl
def distill_sigma_sampler():
    def marked(sigma, role, **given):
        open("moved.txt", "a").write(role + "\\n")
        return sigma

    return marked
"""


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMD_PLUGIN_LOAD", os.environ["AMD_PLUGIN_LOAD"])  # what a command adds is gone after the test
    (tmp_path / "mine.py").write_text(OWN)


@pytest.mark.parametrize("pool", [0, 1])
def test_a_reward_in_a_file_trains_here_and_in_a_worker(cli, pool):
    reward = f"--set=rewards=[{{name: near, reach: 2.0, pool: {pool}}}]"
    code, printed = cli("train", "modes2d", "--plugin", "mine.py", *TINY, reward, "--output", "run")
    assert code == 0, printed
    saved = json.loads(open("run/evaluation.json").read())
    assert saved and "reach: 2.0" in open("run/config.yaml").read() and "mine.py" not in open("run/config.yaml").read()


def test_objectives_and_samplers_come_from_a_file_too(cli):
    code, printed = cli("train", "modes2d", "--plugin", "mine.py", "--objective", "halved", "--set=rewards=[]", "--dry-run")
    assert code == 0, printed
    code, printed = cli("plugins", "--plugin", "mine.py", "--json")
    listed = json.loads(printed)
    own = next(row for row in listed["plugins"] if row["name"] == "mine.py")
    assert own["hooks"] == ["distill_objectives", "distill_rewards", "distill_sigma_sampler"]
    assert "near" in listed["rewards"] and "halved" in listed["objectives"]


def test_a_sampler_in_a_file_is_called(cli, tmp_path):
    code, printed = cli(
        "train", "modes2d", "--plugin", "mine.py", *TINY, "--set=rewards=[]", "--objective", "dmd", "--output", "run"
    )
    assert code == 0, printed
    assert {*(tmp_path / "moved.txt").read_text().split()} == {"student", "fake_score"}


def test_a_run_goes_on_only_with_the_samplers_that_it_had(cli, monkeypatch):
    code, printed = cli(
        "train", "modes2d", "--plugin", "mine.py", *TINY, "--set=rewards=[]", "--objective", "dmd", "--output", "run"
    )
    assert code == 0 and "next: amd-plugin evaluate run --plugin mine.py" in printed
    monkeypatch.setenv("AMD_PLUGIN_LOAD", "amd")
    more = ("--set=train.max_steps=5", "--resume", "run")
    code, printed = cli("train", *more)
    assert code == 2 and "plugin mine.py: moves noise levels or strengths -> none" in printed
    code, printed = cli("train", *more, "--plugin", "mine.py")
    assert code == 0, printed


def test_the_environment_names_files_beside_entry_points(cli, tmp_path, monkeypatch):
    for value in (str(tmp_path / "mine.py"), f"amd,{tmp_path / 'mine.py'}"):
        monkeypatch.setenv("AMD_PLUGIN_LOAD", value)
        code, printed = cli("plugins")
        assert code == 0 and "near" in printed and "objectives: amd" in printed and "no plugin is called" not in printed


def test_a_file_named_by_a_recipe_is_never_read(cli, tmp_path):
    code, printed = cli("train", "modes2d", "--set=rewards=[{name: ./mine.py}]", "--dry-run")
    assert code == 2 and "unknown reward './mine.py'" in printed and "--plugin FILE.py" in printed
    assert "in another toolkit AMD_PLUGIN_LOAD=FILE.py" in printed, "amd-plugin host has no option --plugin"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.py", None, "--plugin nowhere.py: there is no such file"),
        ("mine.txt", "", "is no Python file"),
        ("syntax.py", "import amd_plugin\ndef (:\n", "syntax.py:2: SyntaxError"),
        ("raises.py", "\n\n1 / 0\n", "raises.py:3: ZeroDivisionError"),
        ("leaves.py", "raise SystemExit(0)\n", "leaves.py:1: SystemExit"),
        ("empty.py", "def reward(media, prompts):\n    return [0.0] * len(media)\n", "it has no hook"),
        ("wrong.py", "import amd_plugin\n@amd_plugin.hookimpl\ndef distill_rewards(nonsense):\n    return {}\n", "nonsense"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(cli, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, printed = cli("train", "modes2d", "--plugin", name, "--dry-run")
    assert code == 2 and said in printed and "Traceback" not in printed


def test_the_docs_first_reward(cli, tmp_path):
    (tmp_path / "my_reward.py").write_text(blocks("docs/rewards.md", "python")[0])
    command = next(
        line for line in "\n".join(blocks("docs/rewards.md", "bash")).splitlines() if "--plugin my_reward.py" in line
    )
    tiny = [setting for setting in TINY if "group_size" not in setting]
    more = ["--set=model.heads=1", "--set=model.teacher.steps=2", "--set=train.max_steps=1", "--set=train.group_size=4"]
    code, printed = cli(*shlex.split(command)[1:], *tiny, *more, "--output", "run")
    assert code == 0, printed


def test_a_command_to_be_typed_next_is_one_where_folders_have_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin_files, "_typed", [])
    (tmp_path / "my own.py").write_text(OWN)
    plugin_files.add([Path("my own.py")])
    typed = plugin_files.command("train", "--resume", tmp_path / "a run")
    assert shlex.split(typed) == ["amd-plugin", "train", "--resume", str(tmp_path / "a run"), "--plugin", "my own.py"]
    by_hand = re.compile(r"amd-plugin [a-z]+ (--[a-z]+ )?\{(?!shlex)")
    sources = [*(ROOT / "amd_plugin").rglob("*.py"), *(ROOT / "amd_plugin").rglob("*.j2")]
    assert [path.name for path in sources if by_hand.search(path.read_text())] == []


def test_a_comma_in_the_path_of_a_file_is_refused(cli, tmp_path):
    (tmp_path / "a,b.py").write_text(OWN)
    code, printed = cli("plugins", "--plugin", "a,b.py")
    assert code == 2 and "a comma separates the files of AMD_PLUGIN_LOAD" in printed
