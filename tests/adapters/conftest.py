"""The tests under `inside` run in a process that sees a real host; here they are only started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hosts import ROOT, environment

HERE = Path(__file__).parent
collect_ignore = ["inside"]


@pytest.fixture
def inside():
    """Runs `inside/test_HOST_ABOUT.py` where that host is; asserts that every test in it ran and passed, and says how many."""

    def run(host, about="", source=None):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "-W", "ignore"]
        command += ["--rootdir", HERE / "inside", "--confcutdir", HERE / "inside", HERE / "inside" / f"test_{host}{about}.py"]
        env = environment(host)
        if source is not None:
            env["PYTHONPATH"] = os.pathsep.join([source, env["PYTHONPATH"]])
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
        assert done.returncode == 0 and re.fullmatch(r"\d+ passed.*", last) and "skipped" not in last, done.stdout + done.stderr
        return int(last.split()[0])

    return run
