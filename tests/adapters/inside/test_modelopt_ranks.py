"""A real ZeRO-3 teacher inside `AMDPipeline`: two processes, gloo, placed by the hook `distill_prepare_frozen`."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def two_ranks():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-c", "import rank_modelopt; rank_modelopt.main()"]
    processes = [
        subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)
        for rank in (0, 1)
    ]
    try:
        answers = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), answers
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in answers]


def test_a_sharded_teacher_trains_what_a_whole_one_does():
    for done in two_ranks():
        shared, alone = done["zero3"], done["none"]
        held, size, left = shared["held"]
        assert alone["held"] == [size, size, size]
        assert size / 2 <= held < 0.52 * size and left == held, "half on each rank, before and after; some padding"
        torch.testing.assert_close(torch.tensor(shared["losses"]), torch.tensor(alone["losses"]), rtol=1e-4, atol=1e-6)
        for a, b in zip(shared["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-6)
