"""Groups of real processes: torchrun on a script or on the command line, with a timeout, their output when they fail."""

import os
import signal
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def torchrun(count):
    """The launcher's part of a command for `count` processes."""
    rendezvous = ("--master_port=0", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")
    return [BIN / "torchrun", f"--nproc_per_node={count}", *rendezvous]


def forked(count):
    """In place of `torchrun`, where a test is not about the launcher: `count` processes of a script that share their imports."""
    return [sys.executable, ROOT / "tests" / "helpers" / "forked_group.py", str(count)]


def start(command, cwd, **environment):
    """A process group of its own, so that nothing of it outlives a test."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [str(part) for part in command], cwd=cwd, env=variables, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, timeout=180):
    """(exit code, output); the whole group is killed when the time is over."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{printed[-4000:]}") from None
    return process.returncode, printed


def run(command, cwd, timeout=180, **environment):
    """(exit code, output) of a whole command."""
    return finish(start(command, cwd, **environment), timeout)
