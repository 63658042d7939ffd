"""A frozen network sharded over processes: ZeRO-3 for inference.

    network = shard(network, accelerator)          # the same module, called as before

Weights are gathered before a layer runs and released after it. Between calls a process holds 1 / processes of them. All
processes must call the network equally often. Gradients pass through to its inputs, since callers call the plain module and no
DeepSpeed engine.
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
        module: the network, the same on all processes. `read` provides the parameters that are on the meta device.
        accelerator: the processes; the network is not added to the accelerator's models.
        offload: whether shares stay in host memory.
        read: the reader of parameters by name; called on the first process, once per parameter, in the module's order.

    Raises:
        InputError: for a parameter on the meta device without `read`.
        MissingDependency: without deepspeed.
    """
    deepspeed = deepspeed_for(accelerator)
    config = _config(module, offload)
    module.requires_grad_(False)
    partition(module, accelerator, config, read)
    engine, *_ = deepspeed.initialize(model=module, config=config, dist_init_required=False)
    module.eval()
    # Hooks live as long as the engine. Set as a normal attribute, the engine would become a submodule that contains its parent.
    module.__dict__["_zero3"] = engine
    # Adapters that are added to the module later are not sharded and must not be released.
    sharded: Any = nn.ParameterList(module.parameters())
    sharded.ds_external_parameters = tuple  # none, in the form in which the coordinator calls it
    release = partial(engine.optimizer.get_param_coordinator().release_and_reset_all, sharded)
    module.register_forward_hook(lambda module, inputs, output: _release_after(output, release))
    return module


def partition(module: nn.Module, accelerator: Any, config: dict[str, Any], read: TensorReader | None = None) -> None:
    """Shards `module`'s parameters one after the other, so that never more than one of them is whole.

    Args:
        module: the network; the first process's values are those of all.
        accelerator: the processes.
        config: DeepSpeed's configuration.
        read: the reader of parameters on the meta device, by name.

    Raises:
        InputError: for a parameter on the meta device without `read`.
    """
    zero = deepspeed_for(accelerator).zero
    first: Any = None
    sharded: dict[int, nn.Parameter] = {}
    buffers: dict[torch.dtype, Tensor] = {}  # one for all values of a dtype; a new one for each would fragment memory
    for name, part, key, parameter in _parameters(module):
        if (tied := sharded.get(id(parameter))) is not None:
            part._parameters[key] = tied
            continue
        data = parameter.data
        if data.is_meta:
            if read is None:
                raise InputError(f"{type(module).__name__}: {name} is on the meta device; pass `read` to give it a value")
            if data.dtype not in buffers:
                largest = max(p.numel() for p in module.parameters() if p.dtype == data.dtype)
                buffers[data.dtype] = torch.empty(largest, dtype=data.dtype, device=accelerator.device)
            data = buffers[data.dtype][: data.numel()].view(data.shape)
            if accelerator.is_main_process:
                data.copy_(read(name))
        whole = nn.Parameter(data.to(accelerator.device), requires_grad=parameter.requires_grad)
        sharded[id(parameter)] = whole
        part._parameters[key] = whole
        # From here on all processes share the first process's values.
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
    """The number of elements of `module`'s parameters that this process holds now, its shares included."""
    return sum(p.ds_tensor.numel() + p.data.numel() if hasattr(p, "ds_tensor") else p.numel() for p in module.parameters())


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, part in module.named_modules():
        for key, parameter in list(part._parameters.items()):
            if parameter is not None:
                yield f"{prefix}.{key}" if prefix else key, part, key, parameter


def _release_after(output: Any, release: Callable[[], None]) -> None:
    """Releases the weights that a call gathered: at once without a graph, else at the end of the backward pass."""
    differentiable: list[Any] = [v for v in tree_leaves(output) if isinstance(v, Tensor) and v.requires_grad]
    if not differentiable:
        release()
    for value in differentiable:
        # The engine's own hooks miss some weights, for example where several calls share one backward pass.
        value.register_hook(lambda gradient: Variable._execution_engine.queue_callback(release))


def stage3(module: nn.Module) -> dict[str, Any]:
    """The ZeRO-3 part of DeepSpeed's configuration. Sizes are numbers: "auto" reads attributes that diffusers models lack."""
    largest = max((p.numel() for p in module.parameters()), default=1)
    return {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 4 * largest,
        "stage3_prefetch_bucket_size": largest,
        # True would replace torch.nn.functional.linear for the whole program.
        "memory_efficient_linear": False,
    }


def _config(module: nn.Module, offload: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for inference."""
    zero = stage3(module)
    if offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
