"""A frozen network, each process holding its share of every tensor: ZeRO-3 for inference.

    network = shard(network, accelerator)          # the same module, called as before

Before a layer runs its weights are gathered, after it they are let go; between calls a process holds 1 / processes of them.
All processes must call it equally often. Gradients pass through to its inputs, since it is the plain module that is called and
no DeepSpeed engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

from amd_plugin.errors import InputError
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.sharding.setup import deepspeed_for


def shard(module: nn.Module, accelerator: Any, *, offload: bool = False, read: TensorReader | None = None) -> nn.Module:
    """Shards the frozen `module` in place over `accelerator`'s processes and returns it, in eval mode.

    Args:
        module: the same on all processes. Parameters may be on the meta device, they come from `read` then.
        accelerator: whose processes; the network is kept out of its list of models.
        offload: shares stay in host memory.
        read: parameter's name -> tensor; called on the first process, once for each, in the order of the module.

    Raises:
        MissingDependency: without deepspeed.
    """
    deepspeed = deepspeed_for(accelerator)
    config = _config(module, offload)
    module.requires_grad_(False)
    partition(module, accelerator, config, read)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    module.eval()
    # Hooks live as long as the engine does. As a plain attribute it would be a part of the module that contains the module.
    module.__dict__["_zero3"] = engine
    # Adapters that the module is given later are not sharded, and not to be released.
    mine, coordinator = nn.ParameterList(module.parameters()), engine.optimizer.get_param_coordinator()
    mine.ds_external_parameters = tuple  # none; the coordinator asks every module it knows
    release = partial(coordinator.release_and_reset_all, mine)
    module.register_forward_hook(lambda module, inputs, output: _after_call(output, release))
    return module


def partition(module: nn.Module, accelerator: Any, config: dict[str, Any], read: TensorReader | None = None) -> None:
    """Gives every process its share of `module`'s parameters, one after the other: never more than one is whole."""
    zero = deepspeed_for(accelerator).zero
    first: Any = None
    taken: dict[int, nn.Parameter] = {}
    room: dict[torch.dtype, Tensor] = {}  # for one whole value after the other: fresh memory for each would leave holes
    for name, part, key, parameter in _parameters(module):
        if (known := taken.get(id(parameter))) is not None:
            part._parameters[key] = known
            continue
        data = parameter.data
        if data.is_meta:
            if read is None:
                raise InputError(f"{type(module).__name__}: {name} is on the meta device; pass `read` to give it a value")
            if data.dtype not in room:
                largest = max(p.numel() for p in module.parameters() if p.dtype == data.dtype)
                room[data.dtype] = torch.empty(largest, dtype=data.dtype, device=accelerator.device)
            data = room[data.dtype][: data.numel()].view(data.shape)
            if accelerator.is_main_process:
                data.copy_(read(name))
        whole = nn.Parameter(data.to(accelerator.device), requires_grad=parameter.requires_grad)
        taken[id(parameter)] = whole
        part._parameters[key] = whole
        # The first process's values are everyone's from here on.
        if first is None:
            zero.Init(module=nn.ParameterList([whole]), config_dict_or_path=config, dtype=whole.dtype)
            first = whole
        else:
            first.convert_to_zero_parameters(param_list=[whole])
    for buffered in module.modules():
        for key, buffer in buffered._buffers.items():
            if buffer is not None:
                buffered._buffers[key] = buffer.to(accelerator.device)


def held(module: nn.Module) -> int:
    """Elements of `module`'s parameters that this process holds now, its shares included."""
    return sum(p.ds_tensor.numel() + p.data.numel() if hasattr(p, "ds_tensor") else p.numel() for p in module.parameters())


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, part in module.named_modules():
        for key, parameter in list(part._parameters.items()):
            if parameter is not None:
                yield f"{prefix}.{key}" if prefix else key, part, key, parameter


def _after_call(output: Any, release: Callable[[], None]) -> None:
    """Lets go of what a call left gathered: at once if nothing can flow back through it, else when the backward pass ends."""
    ends = [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.requires_grad]
    if not ends:
        release()
    for end in ends:
        # The engine's own hooks miss some, for example where several calls share one backward pass.
        end.register_hook(lambda gradient: Variable._execution_engine.queue_callback(release))


def gathering(module: nn.Module) -> dict[str, Any]:
    """ZeRO-3's part of DeepSpeed's config: sizes are numbers, since "auto" asks for attributes that diffusers' models lack."""
    largest = max((p.numel() for p in module.parameters()), default=1)
    return {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 4 * largest,
        "stage3_prefetch_bucket_size": largest,
        # It would replace torch.nn.functional.linear for the whole program.
        "memory_efficient_linear": False,
    }


def _config(module: nn.Module, offload: bool) -> dict[str, Any]:
    """DeepSpeed's, for inference."""
    zero = gathering(module)
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
