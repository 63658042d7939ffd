"""Real hosts from PyPI, each in a folder of its own beside our environment, kept between runs in `.venv-hosts`.

A host is installed without its dependencies, which would replace torch; `adapters/requirements/NAME.txt` is its import closure.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "tests" / "adapters" / "requirements"


def environment(host):
    """Environment variables of a process that can import `host`; installs it first where that was not done."""
    requirements = REQUIREMENTS / f"{host}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = ROOT / ".venv-hosts" / f"{host}-{key}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            options = ["--quiet", "--no-compile", "--no-deps", "--target", folder, "-r", requirements]
            pip = [sys.executable, "-m", "pip", "install", *options]
            done = subprocess.run(pip, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "installed").touch()
    path = os.pathsep.join([str(folder), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
