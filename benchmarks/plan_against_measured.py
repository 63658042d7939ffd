"""Predictions of `amd-plugin plan` against real runs on the CPU: bytes by role, and peaks by torch's own allocator.

    python benchmarks/plan_against_measured.py [RECIPE ...]          # default: digits_sdxl and moving_digits
    torchrun --nproc_per_node=2 benchmarks/plan_against_measured.py  # the same as DeepSpeed engines, without the peaks

For each recipe a real `Trainer` runs one cycle. Parameters, gradients (at the optimizer's step), Adam's state and the moving
average are counted. Then torch's profiler records a forward and a backward pass of the student; its allocator statistics are
independent of the planner. Prints predicted and measured bytes and their ratio.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.profiler import ProfilerActivity, profile

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plan.calls import traces
from amd_plugin.plan.model_spec import model_spec
from amd_plugin.plan.planner import plan
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe import Recipe

GROUP = [InitProcessGroupKwargs(backend="gloo")] if "WORLD_SIZE" in os.environ else []
SMALL = ("model.teacher.steps=10", "train.max_steps=1", "train.batch_size=16", "train.fake_updates=1", "train.trackers=[]")


def compare(loaded: Recipe, plugins: PluginManager) -> dict[str, tuple[int, int]]:
    """``role.column`` -> (predicted, measured) bytes on this process; without engines, also the student's ``activations``."""
    accelerator = Accelerator(cpu=True, mixed_precision=loaded.config.distributed.mixed_precision, kwargs_handlers=GROUP)
    predicted = plan(loaded, plugins, accelerator.num_processes, 80_000_000_000)
    trainer = Trainer(loaded, plugins, accelerator)
    optimizers = {
        name: getattr(learner.optimizer, "optimizer", learner.optimizer) for name, learner in trainer.learners.items()
    }
    gradients: dict[str, int] = {}
    for name, optimizer in optimizers.items():

        def count(optimizer: Any, *rest: Any, name: str = name) -> None:
            gradients[name] = _bytes(p.grad for group in optimizer.param_groups for p in group["params"])

        optimizer.register_step_pre_hook(count)
    trainer.cycle()
    roles = {"student": trainer.student, "fake_score": trainer.fake_score, "teacher": trainer.teacher}
    shared = loaded.config.model.roles == "shared_base"
    compared = {}
    for name, role in roles.items():
        own = {id(p) for r in roles.values() for p in r.parameters()} if shared else set()
        whole = [p for p in role.network.parameters() if id(p) not in own]
        measured = {
            "weights": _bytes(getattr(p, "ds_tensor", p) for p in (role.parameters() if own and not role.frozen else whole))
        }
        if name != "teacher":
            state = optimizers[name].state.values()
            tensors = [*(v for s in state for v in s.values()), *(role.master_weights() if trainer.has_shares else ())]
            measured |= {"gradients": gradients[name], "optimizer": _bytes(tensors)}
        if name == "student":
            measured["average"] = _bytes(trainer.ema.weights)
        for column, size in measured.items():
            compared[f"{name}.{column}"] = (getattr(predicted.rows[name], column), size)
    return compared if trainer.has_shares else compared | {"student.activations": _activations(trainer, loaded, plugins)}


def _activations(trainer: Trainer, loaded: Recipe, plugins: PluginManager) -> tuple[int, int]:
    """(predicted, measured) peak bytes of one forward and backward pass of the student."""
    config = loaded.config
    batch = config.train.batch_size // config.train.accumulation
    spec = model_spec(config.model, loaded.task, config.train.seed, plugins.families())
    predicted = traces(spec, config, batch, uncond=True)["student"]
    condition = spec.condition(batch)
    x, timestep = torch.randn(batch, *spec.sample_shape), torch.full((batch,), 500.0)
    for parameter in trainer.student.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def call() -> None:
        target = trainer.forward.caller.call(trainer.student, x, timestep, condition).float()
        trainer.student.activate()
        torch.autograd.backward(target, torch.ones_like(target))

    call()  # buffers that stay allocated after the first call do not count
    return predicted.peak, most_allocated(call)


def most_allocated(call: Callable[[], None]) -> int:
    """Peak of the bytes that `call` allocates, by the allocator's own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = [e["args"] for e in json.loads(file.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    before: int = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(int(e["Total Allocated"]) for e in events) - before


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    """Compares all recipes and variants, and prints the tables."""
    plugins = get_plugin_manager()
    stages = ("zero2", "zero3") if GROUP else ("none",)
    variants = (
        [f"train.gradient_checkpointing={flag}" for flag in ("false", "true")] if not GROUP else ["distributed.teacher=zero3"]
    )
    for name in sys.argv[1:] or ["digits_sdxl", "moving_digits"]:
        for stage, variant in itertools.product(stages, variants):
            loaded = recipe.load(name, plugins, (*SMALL, variant, f"distributed.trained={stage}"), "dmd")
            compared = compare(loaded, plugins)
            if os.environ.get("RANK", "0") == "0":
                print(f"{name}, {variant}, distributed.trained={stage}")
                for column, (predicted, measured) in compared.items():
                    print(
                        f"  {column:<24} predicted {predicted:>12,}  measured {measured:>12,}  ratio {predicted / measured:.4f}"
                    )


if __name__ == "__main__":
    main()
