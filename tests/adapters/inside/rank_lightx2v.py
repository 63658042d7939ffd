"""One of two processes of a LightX2V run, data parallel on CPUs; each has one sample of each of two prompts.

python -c "import rank_lightx2v; rank_lightx2v.main()" RANK PORT
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from tiny_lightx2v import EXAMPLES, Run, built, config


def brightness(media, prompts):
    return media.flatten(1).mean(1)


def trained(kind, amd=None):
    """A run of three updates; every rank has noise of its own, and rank 0 draws the exit rungs."""
    settings = config(EXAMPLES["video_dmd"][0], ["a cat", "a dog"], amd)
    # The host's way to start ranks needs a GPU each; this is its data parallelism without that.
    settings["distributed"] = {"dp": {"enabled": True, "find_unused_parameters": True}}
    run = Run(built(EXAMPLES["video_dmd"][kind], settings))
    run.random = torch.Generator().manual_seed(dist.get_rank()).get_state()
    return run, [value for weight in run.train(3).weights for value in weight.flatten().tolist()]


def main():
    rank, port = sys.argv[1:3]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2")
    dist.init_process_group("gloo")
    _, stock = trained(1)
    _, off = trained(2, {"strength": 0, "sharpening": 0, "reward": brightness})
    conditioned = {"advantage_guidance": 1.0, "rung_conditioning": True}
    run, weights = trained(2, {"sharpening": 1.0, "reward": brightness, **conditioned})
    digest = lambda values: hash(tuple(values))  # noqa: E731 (of floats: the same in all processes)
    advantages = run.trainer.bridge.signal_fields["batch_advantage"].tolist()
    print(json.dumps({"stock": digest(stock), "off": digest(off), "weights": digest(weights), "advantages": advantages}))
    dist.destroy_process_group()
