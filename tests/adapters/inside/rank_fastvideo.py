"""One of two processes of FastVideo's own trainer, each role sharded over both; prints a record of each step as JSON.

    python -c "import rank_fastvideo; rank_fastvideo.main()" RANK PORT FOLDER FAILS

Trains with the host's rollouts, with `fast_rollout`, and with harvested rollouts; and with the rows in FOLDER/data, which the
host's own loader deals out, for several values of `group_size`. FAILS: in which iterations the reward of which rank fails, as JSON {"0": [1, 2]}.
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
from ranks import leave_group
from torch.distributed.fsdp import fully_shard
from toy_fastvideo import STATE, Log, ParquetToy, Probe, Toy, settings

from amd_plugin import get_plugin_manager, hookimpl
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.conditioning import PLACES
from amd_plugin.adapters.fastvideo import AMDMethod

PROMPTS = (("a cat", "a dog"), ("a dog", "a cat"))
REWARDS = ((1.0, 5.0), (9.0, 3.0))
COLLECTIVES = ("all_gather", "all_gather_single", "all_reduce", "broadcast", "reduce_scatter_single")
record = {"rungs": [], "scores": [], "forwards": [], "collectives": [], "reward": [], "groups": []}  # an entry for each step


class Half(Toy):
    """A role sharded over both ranks: a forward or a gradient too many on one rank would wait for ever."""

    def __init__(self, **options):
        super().__init__(**options)
        fully_shard(self.transformer, mesh=dist.init_device_mesh("cpu", (2,)))
        prompts = PROMPTS[dist.get_rank()]
        texts = torch.stack([torch.full((5,), 1.0 if prompt == "a cat" else -1.0) for prompt in prompts])
        self.dataloader = [{"text": texts, "info_list": [{"prompt": prompt} for prompt in prompts]}]


class HalfOfParquet(ParquetToy, Half):
    """A role sharded over both ranks, with FastVideo's own loader."""


class Rewards:
    """A plugin whose reward ``mine`` returns `REWARDS`, or fails, and whose reward ``rank`` prefers the second rank."""

    fails: dict = {}  # noqa: RUF012  # rank -> iterations
    iteration = 0

    @hookimpl
    def distill_rewards(self):
        return {"mine": lambda: self.score, "rank": lambda: lambda media, prompts: [float(dist.get_rank())] * len(prompts)}

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


class GroupsMethod(AMDMethod):
    """Records the prompts of this rank and the advantages of all, in each step."""

    plugins = Method.plugins

    def single_train_step(self, batch, iteration):
        done = super().single_train_step(batch, iteration)
        advantages = self.bridge.signal_fields["batch_advantage"].tolist()
        record["groups"].append([[info["caption"] for info in batch["info_list"]], advantages])
        return done


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
    # FastVideo's checkpoints hold the state of CUDA's generator without asking whether there is one.
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = torch.get_rng_state, lambda state: None
    PLACES["Net"] = "time"
    # Tables in a critic that is sharded already, at 8 times its rate, and failures of both ranks.
    conditioned = {"rung_conditioning": True, "advantage_guidance": 1.0, "memory_share": 0.5, "outcome_lr": 0.08}
    kinds = ({}, {"fast_rollout": True, **conditioned}, {"rollouts": "harvest", **conditioned})
    done = {"kinds": [trained(f"{folder}/{rank}.yaml", kind) for kind in kinds]}
    for size, batch in ((1, 1), (2, 1), (2, 2), (4, 2)):
        done[f"{size} of {batch}"] = grouped(folder, rank, size, batch)
    done["resumed"] = grouped(folder, rank, 2, 1, resume=f"{folder}/2-1/checkpoint-5")
    print(json.dumps(done))
    leave_group()


def grouped(folder, rank, size, batch, resume=""):
    """Ten iterations with `group_size` and a checkpoint at the fifth: prompts and advantages of each."""
    name = f"{size}-{batch}" if not resume else "resumed"
    options = {"reward": {"name": "rank"}, "sharpening": 1.0, "group_size": size}
    written = settings(
        f"{folder}/{name}", "rank_fastvideo.GroupsMethod", options, STATE, save=5, resume=resume, processes=2, batch=batch,
        data=f"{folder}/data",
    )  # fmt: skip
    for role in written["models"].values():
        role["_target_"] = "rank_fastvideo.HalfOfParquet"
    path = f"{folder}/{name}-{rank}.yaml"
    with open(path, "w") as file:
        yaml.safe_dump(written, file)
    record["groups"] = []
    run_training_from_config(path)
    return record["groups"]


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
