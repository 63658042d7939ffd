"""Run by test_engines.py in every process of a group: looks into a trainer with engines, writes down what it saw."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.lazy_weights import materialize
from amd_plugin.sharding.frozen import held
from tests.helpers.recipes import TINY

SETTINGS = ("train.batch_size=12", "train.ema=0.5")


def weights(role):
    return {name: materialize(value).clone() for name, value in role.state_dict().items()}


def gap(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def refused(trainer, name):
    """Whether an update by a loss that only the last process has as NaN is finite on this one, and how much it changes."""
    learner, before = trainer.learners[name], weights(trainer.learners[name].role)
    x = torch.zeros(2, *trainer.backbone.sample_shape)
    output = trainer.forward.caller.call(
        learner.role, x, torch.full((2,), 500.0), trainer.forward.condition(torch.zeros(2, dtype=torch.long))
    )
    last = trainer.accelerator.process_index == trainer.accelerator.num_processes - 1
    learner.backward(output.sum() * (float("nan") if last else 1.0))
    norm = learner.update(trainer.step)
    return bool(norm.isfinite()), gap(before, weights(learner.role))


def look(trainer, trained):
    """What there is to see of shares in two cycles; the student after them goes to the file `trained`."""
    seen = {}
    network = trainer.student.network
    seen["whole"] = sum(value.numel() for value in weights(trainer.student).values())
    seen["masters"] = sum(tensor.numel() for tensor in trainer.student.master_weights())
    seen["elements"] = {
        n: [list(p.ds_shape), p.ds_tensor.numel()] for n, p in network.named_parameters() if hasattr(p, "ds_shape")
    }
    seen["held"] = {"start": held(network)}
    for cycle in range(2):
        metrics = trainer.cycle()
        seen["held"][f"cycle {cycle}"] = held(network)
    save_file(weights(trainer.student), trained)
    before, average = weights(trainer.student), trainer.ema.state_dict()["weights"]
    average = {name: materialize(value).clone() for name, value in average.items()}
    with trainer.ema.applied():
        seen["average applied"] = gap(average, weights(trainer.student))
    seen["given back"], seen["average differs"] = gap(before, weights(trainer.student)), gap(before, average)
    trainer.sample(torch.zeros(4, dtype=torch.long), "look")
    seen["held"]["sampled"] = held(network)
    seen["norms"] = [float(metrics[f"grad_norm/{name}"]) for name in trainer.learners]
    seen["not finite"] = [refused(trainer, name) for name in trainer.learners]
    return seen


def main(encoder, out):
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    plugins, seen = get_plugin_manager(), {}
    for stage in ("zero2", "zero3"):
        settings = (*TINY, *SETTINGS, f"distributed.trained={stage}")
        trainer = Trainer(recipe.load("modes2d", plugins, settings, "dmd"), plugins, accelerator)
        seen[stage] = look(trainer, Path(out) / f"{stage}-{accelerator.process_index}.safetensors")
    AcceleratorState._reset_state()  # it keeps the first precision
    half = Accelerator(cpu=True, mixed_precision="bf16")
    settings = (*TINY, *SETTINGS, "distributed.trained=zero2", "distributed.mixed_precision=bf16")
    trainer = Trainer(recipe.load("modes2d", plugins, settings, "dmd"), plugins, half)
    trainer.cycle()
    seen["zero2"]["not finite"] += [refused(trainer, name) for name in trainer.learners]
    seen["text encoder"] = sum(p.numel() for p in UMT5EncoderModel.from_pretrained(encoder).parameters())
    (Path(out) / f"rank-{accelerator.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
