"""Versions of a host that were not tested: named in the log, and their methods compared before anything runs."""

import json
import logging
import os
import subprocess
import sys

import pluggy
import pytest

from amd_plugin.adapters.compatibility import Host
from amd_plugin.errors import MissingDependency


def test_a_newer_version_is_named_once(caplog):
    host = Host("pluggy", "1.0", "1.1", "pluggy>=1.0,<1.1")
    with caplog.at_level(logging.WARNING):
        assert host.load("pluggy") is pluggy and host.load("pluggy._manager")
    assert caplog.text.count("is not a tested version (pluggy>=1.0,<1.1)") == 1
    host.check(pluggy.PluginManager, {"register": "self, plugin, name"})
    with pytest.raises(MissingDependency, match=r"register takes \(self, plugin, name\), not \(self\); gone\(self\) is gone"):
        host.check(pluggy.PluginManager, {"register": "self", "gone": "self"})


@pytest.mark.parametrize("kind", ["detached", "branch", "editable", "installed"])
def test_a_commit_that_was_not_tested_is_named(tmp_path, monkeypatch, caplog, kind):
    """A host without releases has one version for all its commits, or none."""
    commit, name = "0123456789abcdef" * 2 + "01234567", f"host_that_is_{kind}"
    files = {f"{name}/__init__.py": ""}
    if kind != "installed":
        files |= {".git/HEAD": commit if kind == "detached" else "ref: refs/heads/main", ".git/refs/heads/main": commit}
    if kind in ("editable", "installed"):
        origin = {"dir_info": {"editable": True}} if kind == "editable" else {"vcs_info": {"vcs": "git", "commit_id": commit}}
        files[f"{name}-1.0.dist-info/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        files[f"{name}-1.0.dist-info/direct_url.json"] = json.dumps({"url": "somewhere", **origin})
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    tested = Host(name, "0", "", "git clone somewhere", package=name, commit=commit)
    with caplog.at_level(logging.WARNING):
        tested.load(name)
        assert not caplog.text
        tested._replace(commit="f" * 40).load(name)
    assert f"{name} of commit 0123456789ab is not a tested version (commit ffffffffffff)" in caplog.text


def test_a_fastgen_of_the_next_version_says_so_and_what_changed(tmp_path):
    """A checkout states its version in setup.py; a method that takes another argument ends it before anything is loaded."""
    for name, text in {
        "setup.py": 'setup(\n    version="0.2.0",\n)\n',
        "fastgen/__init__.py": "",
        "fastgen/methods/__init__.py": "class DMD2Model:\n    def __init__(self, config, phases):\n        pass\n",
        "fastgen/methods/common_loss.py": "",
        "fastgen/callbacks/__init__.py": "",
        "fastgen/callbacks/callback.py": "class Callback:\n    pass\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "amd_plugin.cli", "host", "fastgen", "--", "--config=c.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    said = " ".join(done.stderr.split())
    assert done.returncode == 3 and "fastgen 0.2.0 is not a tested version" in said, done.stderr
    assert "__init__ takes (self, config, phases), not (self, config)" in said and "single_train_step" in said
