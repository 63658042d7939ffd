"""Run by test_frozen.py in every process of a group: shards a tiny Wan in several ways, writes down what it saw."""

import copy
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import UMT5EncoderModel

from amd_plugin import get_plugin_manager
from amd_plugin.models.pretrained import Pretrained
from amd_plugin.sharding.frozen import held, shard

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script of its own, not a module of the tests
from tests.helpers.documentation import blocks

ALONE = "WORLD_SIZE" not in os.environ
GROUP = [] if ALONE else [InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=60))]


def call(network, x, text=None):
    text = torch.ones(len(x), 5, 32) if text is None else text
    return network(x, timestep=torch.full((len(x),), 999.0), encoder_hidden_states=text.to(network.dtype)).sample


def gap(one, two):
    return (one - two).abs().max().item()


def gradient(network, x, calls=1):
    """Of the input, through so many calls and one backward pass."""
    start = x.clone().requires_grad_()
    sum((call(network, start * (i + 1)) ** 2).sum() for i in range(calls)).backward()
    return start.grad


def main(folder, out):
    accelerator = Accelerator(cpu=True, kwargs_handlers=GROUP)
    torch.manual_seed(accelerator.process_index)  # ranks differ wherever they should not matter
    where = Pretrained(folder)
    family = where.family(get_plugin_manager().families())
    whole = where.network(family, torch.float32)
    x = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 1, 3, 8, 8)
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    seen = {"whole": sum(p.numel() for p in whole.parameters()), "elements": {}, "held": {}, "gap": {}}

    (documented,) = blocks("docs/sharding.md", "python")
    names = {"teacher": copy.deepcopy(whole), "accelerator": accelerator}
    exec(documented, names)
    with torch.no_grad():
        seen["gap"]["as documented"] = gap(call(names["teacher"], x, text), call(whole, x, text))
    seen["held"]["as documented"] = held(names["teacher"])

    for kind in ("plain", "checkpointed", "offloaded"):
        network = copy.deepcopy(whole)
        if kind == "checkpointed":
            network.enable_gradient_checkpointing()
        sharded = shard(network, accelerator, offload=kind == "offloaded")
        assert sharded is network and not sharded.training and sharded.config.num_layers == 1
        seen["elements"][kind] = {n: [list(p.ds_shape), p.ds_tensor.numel(), p.numel()] for n, p in sharded.named_parameters()}
        seen["held"][f"{kind} start"] = held(sharded)
        for turn in range(3):  # DeepSpeed records the first, and foresees from the second on
            with torch.no_grad():
                seen["gap"][f"{kind} call {turn}"] = gap(call(sharded, x, text), call(whole, x, text))
            seen["held"][f"{kind} call {turn}"] = held(sharded)
        for calls in (1, 2):
            seen["gap"][f"{kind} gradient of {calls}"] = gap(gradient(sharded, x, calls), gradient(whole, x, calls))
            seen["held"][f"{kind} gradient of {calls}"] = held(sharded)
        call(sharded, x)  # grad mode, and nothing that needs one
        seen["held"][f"{kind} call without need"] = held(sharded)
        with torch.no_grad():
            joined = call(sharded, x.repeat(2, 1, 1, 1, 1), torch.cat((text, 0 * text)))
            seen["gap"][f"{kind} joined"] = max(
                gap(joined[:2], call(sharded, x, text)), gap(joined[2:], call(sharded, x, 0 * text))
            )
            with torch.autocast("cpu", torch.bfloat16):
                seen["gap"][f"{kind} autocast"] = gap(call(sharded, x, text), call(whole, x, text))
    assert not accelerator._models and all(p.grad is None and not p.requires_grad for p in sharded.parameters())

    encoder = UMT5EncoderModel.from_pretrained(Path(folder) / "text_encoder")
    seen["text encoder"] = sum(p.numel() for p in encoder.parameters())

    for dtype in (torch.float32, torch.bfloat16):
        read = []
        network, weights = where.outlined_network(family, dtype)
        held_first = sum(p.numel() for p in network.parameters() if not p.is_meta)
        sharded = shard(network, accelerator, read=lambda name, w=weights, seen=read: (seen.append(name), w(name))[1])
        same = where.network(family, dtype)
        with torch.no_grad():
            seen["gap"][f"from files {dtype}"] = gap(call(sharded, x.to(dtype), text), call(same, x.to(dtype), text))
        seen["held"][f"from files {dtype}"] = held(sharded)
        seen["read"] = len(read)
        assert held_first == 0 and sharded.dtype == same.dtype
        assert [p.dtype for p in sharded.parameters()] == [p.dtype for p in same.parameters()]
    (Path(out) / f"rank-{accelerator.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
