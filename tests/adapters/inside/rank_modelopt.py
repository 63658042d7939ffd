"""One of two processes of a ModelOpt user's loop, with a whole teacher and with one in halves, by DeepSpeed ZeRO-3.

    python -c "import rank_modelopt; rank_modelopt.main()" RANK PORT

What it did is on the last line of stdout, as JSON: by kind of sharding.
"""

import json
import os
import sys

import torch
from ranks import leave_group
from test_modelopt import brightness, pipeline, train

from amd_plugin.adapters.modelopt import AMDPipeline


def main():
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    rank, port = sys.argv[1:]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    print(json.dumps({sharding: trained(accelerator, sharding) for sharding in ("none", "zero3")}))
    leave_group()


def trained(accelerator, sharding):
    """Elements of the teacher held before, in all, and held after; losses and weights of four turns."""
    pipe = pipeline(AMDPipeline, reward=brightness, accelerator=accelerator, sharding=sharding)
    teacher = list(pipe.teacher.parameters())
    before = sum(getattr(p, "ds_tensor", p).numel() for p in teacher)
    losses, _, _ = train(pipe, 4)
    after = sum(getattr(p, "ds_tensor", p).numel() for p in teacher)
    weights = [p.detach().flatten().tolist() for role in (pipe.student, pipe.fake_score) for p in role.parameters()]
    held = [before, sum(getattr(p, "ds_numel", p.numel()) for p in teacher), after]
    return {"held": held, "losses": torch.stack(losses).tolist(), "weights": weights}
