"""One of two processes of a FastGen run on CPUs; the reward of rank 0 fails.

python -c "import rank_fastgen; rank_fastgen.main()" RANK PORT
"""

import conftest  # noqa: F401, I001  # declares torchvision's operators before anything imports it
import json
import os
import sys

import torch
import torch.distributed as dist
from ranks import leave_group
from test_fastgen import model, train

from amd_plugin.adapters.fastgen import AMDModel


def main():
    rank, port = sys.argv[1:3]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2")
    dist.init_process_group("gloo")
    reward = lambda media, prompts: 1 / 0 if rank == "0" else media.mean((1, 2, 3))  # noqa: E731
    ours = model(AMDModel, amd={"sharpening": 1.0, "memory_share": 0.5, "reward": reward})
    _, _, weights, _ = train(ours, 4)
    finite = all(bool(torch.isfinite(weight).all()) for weight in weights)
    advantages = ours.bridge.signal_fields["batch_advantage"].tolist()
    print(json.dumps({"failed": ours.bridge.metrics["failed_rewards"].item(), "finite": finite, "advantages": advantages}))
    leave_group()
