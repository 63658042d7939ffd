"""``amd-plugin host new NAME``: an adapter that passes the conformance tests as it is written."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amd_plugin.adapters.template import write_adapter
from amd_plugin.errors import InputError

ROOT = Path(__file__).parents[2]


def test_a_new_adapter_conforms_as_it_is(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = lambda *words: subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)  # noqa: E731
    made = run(sys.executable, "-m", "amd_plugin.cli", "host", "new", "my_trainer")
    assert made.returncode == 0 and len(list(tmp_path.glob("my_trainer_*.py"))) == 3, made.stderr
    command, *words = made.stdout.rpartition("check it with: ")[2].split()
    done = run(Path(sys.executable).with_name(command), *words, "-q", "-p", "no:cacheprovider", "-W", "ignore")
    assert done.returncode == 0 and re.search(r"^13 passed in", done.stdout, re.M), done.stdout + done.stderr


def test_a_new_adapters_rewards_are_computed_where_the_student_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_adapter("placed", tmp_path)
    adapter, devices = importlib.import_module("placed_adapter"), []
    monkeypatch.setattr(adapter, "make_reward", lambda spec, plugins, device: devices.append(device))
    adapter.AMDTrainer({"reward": "random"})
    assert devices == [torch.device("cpu")]


@pytest.mark.parametrize("name", ["my-trainer", "class", "../x", ""])
def test_a_name_must_be_a_modules(tmp_path, name):
    with pytest.raises(InputError, match="host new: must be the name of a module"):
        write_adapter(name, tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine_adapter.py").write_text("precious")
    with pytest.raises(InputError, match=r"mine_adapter\.py is there already"):
        write_adapter("mine", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine_adapter.py"]
