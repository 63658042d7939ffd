"""Two processes of a script here, as the two ranks of a host's run."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist

from amd_plugin.host.running.accelerator import LETTING_GO

HERE = Path(__file__).parent


def two_ranks(script, *words):
    """What each rank's ``main()`` in `script` printed last, as JSON; it is told its rank, a free port and `words`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-c", f"import {script}; {script}.main()"]
    # This process's own path: a checkout of FastGen has a folder `tests`, too.
    shared = {"env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, "cwd": HERE, "text": True}
    processes = [
        subprocess.Popen([*command, str(rank), port, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **shared)
        for rank in (0, 1)
    ]
    try:
        answers = [process.communicate(timeout=1800) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), answers
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in answers]


def leave_group():
    """Ends the process group, once its threads have let go of the last tensors: see ``LETTING_GO``."""
    time.sleep(LETTING_GO)
    dist.destroy_process_group()
