"""Others' code that changes what the whole process shares, or forks it."""

import os
import sys

import pytest
import torch

from amd_plugin import process_settings
from amd_plugin.config import RewardConfig
from amd_plugin.plugins import PluginManager
from amd_plugin.process_settings import as_they_were
from amd_plugin.rewards.reward_set import RewardSet

CHANGES = {
    "the working folder": lambda: os.chdir("/"),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "whether torch keeps gradients": lambda: torch.set_grad_enabled(False),
    "whether torch is deterministic": lambda: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_others_change_is_put_back_and_said_once(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process_settings, "_told", set())
    before = process_settings._settings()
    for _ in range(2):
        with as_they_were("reward 'mine'"):
            CHANGES[name]()
    with pytest.raises(ValueError, match="of its own"), as_they_were("reward 'mine'"):
        CHANGES[name]()
        raise ValueError("of its own")
    assert {n: s.value for n, s in process_settings._settings().items()} == {n: s.value for n, s in before.items()}
    assert [record.getMessage() for record in caplog.records] == [
        f"reward 'mine': changed {name} for the whole process; it was put back to {before[name].value}"
    ]


def _moved():
    os.chdir("/")

    def score(media, prompts):
        assert os.getcwd() != "/", "the factory's folder was put back"
        os.chdir("/")
        return media.flatten(1).mean(1)

    return score


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_reward_moves_no_file_of_the_run(tmp_path, monkeypatch, timeout):
    monkeypatch.chdir(tmp_path)
    plugins = PluginManager()
    monkeypatch.setattr(plugins, "reward_factory", lambda name: _moved)
    rewards = RewardSet([RewardConfig(name="moved", timeout=timeout)], plugins, None)
    scores = rewards(torch.ones(2, 3, 4, 4), ["a", "b"])
    assert not scores.causes and os.getcwd() == str(tmp_path)


def test_a_plugin_file_that_goes_to_its_folder_takes_no_one_with_it(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "mine.py"
    file.write_text(
        "import os\nimport amd_plugin\nos.chdir(os.path.dirname(__file__))\n"
        "@amd_plugin.hookimpl\ndef distill_rewards():\n    os.chdir('/')\n    return {}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMD_PLUGIN_LOAD", str(file))
    plugins = PluginManager()
    plugins.load_files()
    plugins.rewards()
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize(
    ("leave", "code"), [(lambda: sys.exit(3), 3), (sys.exit, 0), (lambda: sys.exit("no"), 1), (lambda: 1 / 0, 1), (int, 1)]
)
def test_a_process_that_others_fork_does_not_go_on_with_the_run(leave, code):
    child = 0
    with as_they_were("reward 'mine'"):
        if not (child := os.fork()):
            leave()
    # Where it comes back, this very test would go on in two processes.
    assert child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
