"""One of two processes of LightX2V runs, data parallel on CPUs; prints what they came to as JSON.

python -c "import rank_lightx2v; rank_lightx2v.main()" RANK PORT
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from lightx2v_train.runtime import distributed
from ranks import leave_group
from tiny_lightx2v import EXAMPLES, Run, built, config

PROMPTS = ["a cat", "a cat", "a dog", "a dog"]  # dealt out in turn: each rank has one sample of each prompt
ROWS = ["a cat", "a dog", "a fox"]  # of the runs with `group_size`; an odd number, so that a batch is filled up


def brightness(media, prompts):
    return media.flatten(1).mean(1)


def fails_on_rank_0(media, prompts):
    if dist.get_rank() == 0:
        raise ConnectionError("no answer")
    return brightness(media, prompts)


brightness.differentiable = fails_on_rank_0.differentiable = True


def built_run(kind, amd=None, prompts=PROMPTS, batch_size=2, shuffle=False):
    """A run on two ranks; every rank has noise of its own, and rank 0 draws the exit rungs."""
    settings = config(EXAMPLES["video_dmd"][0], prompts, amd)
    settings["data"]["train"] |= {"batch_size": batch_size, "shuffle": shuffle}
    # The host's way to start ranks needs a GPU each; this is its data parallelism without that.
    settings["distributed"] = {"dp": {"enabled": True, "find_unused_parameters": True}}
    run = Run(built(EXAMPLES["video_dmd"][kind], settings))
    run.random = torch.Generator().manual_seed(dist.get_rank()).get_state()
    return run


def trained(kind, amd=None):
    """A run of three updates, and its weights."""
    run = built_run(kind, amd)
    return run, [value for weight in run.train(3).weights for value in weight.flatten().tolist()]


def grouped(size, shuffle):
    """The prompts of this rank in each batch of two epochs, and the advantages of all ranks after an update."""
    run = built_run(
        2, {"sharpening": 1.0, "reward": brightness, "group_size": size}, ROWS, batch_size=1, shuffle=shuffle
    )  # fmt: skip
    samples = run.trainer._iter_train_samples()
    batches = [next(samples)["conditioning"]["prompt"] for _ in range(2 * len(run.trainer.dataloader_train))]
    run.train(1)
    return {"batches": batches, "advantages": run.trainer.bridge.signal_fields["batch_advantage"].tolist()}


def main():
    rank, port = sys.argv[1:3]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2")
    dist.init_process_group("gloo")
    distributed._DP_RANK, distributed._DP_WORLD_SIZE = int(rank), 2  # as the host's own start has them
    _, stock = trained(1)
    _, off = trained(2, {"strength": 0, "sharpening": 0, "reward": brightness})
    conditioned = {"advantage_guidance": 1.0, "rung_conditioning": True}
    run, weights = trained(2, {"sharpening": 1.0, "reward": brightness, **conditioned})
    advantages = run.trainer.bridge.signal_fields["batch_advantage"].tolist()
    steered = {"sharpening": 1.0, "reward": fails_on_rank_0}
    alone, failed = trained(2, steered)
    # Every part in which ranks meet: gathers of failures, outcomes, and the graph of the reward's gradient.
    _, everything = trained(2, {**steered, **conditioned, "memory_share": 0.5, "reward_gradient": 0.1})
    digest = lambda values: hash(tuple(values))  # noqa: E731 (of floats: the same in all processes)
    print(
        json.dumps(
            {
                "stock": digest(stock),
                "off": digest(off),
                "weights": digest(weights),
                "advantages": advantages,
                "failed": {
                    "metrics": alone.trainer.amd_metrics(),
                    "advantages": alone.trainer.bridge.signal_fields["batch_advantage"].tolist(),
                    "distance": max(abs(a - b) for a, b in zip(failed, stock, strict=True)),
                    "weights": digest(failed),
                    "everything": digest(everything),
                    "finite": all(value == value and abs(value) < 1e9 for value in everything),
                },
                "grouped": {str(size): grouped(size, size == 2) for size in (1, 2)},
            }
        )
    )
    leave_group()
