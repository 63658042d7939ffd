"""One of two processes of FastVideo's own trainer, each role sharded over both; prints a record of each step as JSON.

    python -c "import rank_fastvideo; rank_fastvideo.main()" RANK PORT FOLDER FAILS

Trains with the host's rollouts, with `fast_rollout`, and with harvested rollouts; FAILS: in which iterations the reward of which rank fails, as JSON {"0": [1, 2]}.
"""

import collections
import json
import os
import sys

import conftest  # noqa: F401  # declares torchvision's operators before anything imports it
import fastvideo.train.trainer
import torch
import torch.distributed as dist
import yaml
from fastvideo.train.entrypoint.train import run_training_from_config
from fastvideo.train.models.base import ModelBase
from torch.distributed.fsdp import fully_shard
from toy_fastvideo import Log, Probe, Toy, settings

from amd_plugin import get_plugin_manager, hookimpl
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import PLACES
from amd_plugin.adapters.fastvideo import AMDMethod

PROMPTS = (("a cat", "a dog"), ("a dog", "a cat"))
REWARDS = ((1.0, 5.0), (9.0, 3.0))
COLLECTIVES = ("all_gather", "all_gather_single", "all_reduce", "broadcast", "reduce_scatter_single")
record = {"rungs": [], "scores": [], "forwards": [], "collectives": [], "reward": []}  # an entry for each step


class Half(Toy):
    """A role sharded over both ranks: a forward or a gradient too many on one rank would wait for ever."""

    def __init__(self, **options):
        super().__init__(**options)
        fully_shard(self.transformer, mesh=dist.init_device_mesh("cpu", (2,)))
        prompts = PROMPTS[dist.get_rank()]
        texts = torch.stack([torch.full((5,), 1.0 if prompt == "a cat" else -1.0) for prompt in prompts])
        self.dataloader = [{"text": texts, "info_list": [{"prompt": prompt} for prompt in prompts]}]


class Rewards:
    """A plugin whose reward returns `REWARDS`, or fails."""

    fails: dict = {}  # noqa: RUF012  # rank -> iterations
    iteration = 0

    @hookimpl
    def distill_rewards(self):
        return {"mine": lambda: self.score}

    def score(self, media, prompts):
        assert tuple(prompts) == PROMPTS[dist.get_rank()]
        if self.iteration in self.fails.get(str(dist.get_rank()), ()):
            raise ConnectionError("no answer")
        return list(REWARDS[dist.get_rank()])


rewards = Rewards()


class RecordingBridge(HostBridge):
    """Records advantages and weights."""

    def advantages(self, *args, **kwargs):
        advantage = super().advantages(*args, **kwargs)
        self.scores.append([advantage.tolist(), self.weights().tolist()])
        return advantage


class Method(AMDMethod):
    """Records each step."""

    plugins = get_plugin_manager()
    plugins.register(rewards, "rewards")

    def on_train_start(self):
        super().on_train_start()
        self.bridge.__class__ = RecordingBridge

    def single_train_step(self, batch, iteration):
        rewards.iteration = iteration
        Toy.calls.clear()
        self.rungs, self.bridge.scores = [], []
        before = collections.Counter(calls)
        done = super().single_train_step(batch, iteration)
        record["rungs"].append(self.rungs)
        record["scores"].append(self.bridge.scores)
        record["forwards"].append(collections.Counter(name for name, *_ in Toy.calls))
        record["collectives"].append(dict(calls - before))
        record["reward"].append([float(done[2].get(f"amd/{name}", -1)) for name in ("reward", "failed_rewards")])
        return done

    def _student_rollout(self, batch, *, with_grad):
        x0 = super()._student_rollout(batch, with_grad=with_grad)
        self.rungs.append(int(batch.dmd_latent_vis_dict["generator_timestep"]))
        return x0


calls = collections.Counter()


def counted(collective):
    def call(*args, **kwargs):
        calls[collective.__name__] += 1
        return collective(*args, **kwargs)

    return call


def main():
    rank, port, folder, fails = sys.argv[1:]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank)
    rewards.fails = json.loads(fails)
    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))
    fastvideo.train.trainer.build_tracker = lambda *args, **kwargs: Log()
    ModelBase.device = torch.device("cpu")
    PLACES["Net"] = "time"
    # Tables in a critic that is sharded already, and failures of both ranks.
    conditioned = {"rung_conditioning": True, "advantage_guidance": 1.0, "memory_share": 0.5}
    kinds = ({}, {"fast_rollout": True, **conditioned}, {"rollouts": "harvest", **conditioned})
    print(json.dumps([trained(f"{folder}/{rank}.yaml", kind) for kind in kinds]))
    dist.destroy_process_group()


def trained(path, kind):
    """Eight iterations of the host's trainer: the record of each step, and the student's weights."""
    options = {"reward": {"name": "mine"}, "side": "both", **kind}
    written = settings(os.path.dirname(path), "rank_fastvideo.Method", options, steps=8, processes=2, batch=2)
    for role in written["models"].values():
        role["_target_"] = "rank_fastvideo.Half"
    with open(path, "w") as file:
        yaml.safe_dump(written, file)
    for steps in record.values():
        steps.clear()
    run_training_from_config(path)
    student = [p.full_tensor().flatten().tolist() for p in Probe.method.student.transformer.parameters()]
    tables = [p.full_tensor().tolist() for p in Probe.method._conditions.parameters()]
    failures = Probe.method.failures and Probe.method.failures.state_dict()
    return json.loads(json.dumps({**record, "student": student, "tables": tables, "failures": failures}))
