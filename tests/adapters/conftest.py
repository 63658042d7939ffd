"""Real hosts from PyPI, each in a folder of its own beside our environment, kept between runs in `.venv-hosts`.

A host is installed without its dependencies, which would replace torch; `requirements/NAME.txt` is its import closure.
The tests under `inside` run in a process that sees that folder; here they are only started.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
collect_ignore = ["inside"]


def environment(host):
    """Environment variables of a process that can import `host`; installs it first where that was not done."""
    requirements = HERE / "requirements" / f"{host}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / ".venv-hosts" / f"{host}-{key}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "-r", requirements]
            done = subprocess.run(pip, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "installed").touch()
    path = os.pathsep.join([str(folder), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


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
