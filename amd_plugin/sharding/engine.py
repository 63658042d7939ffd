"""A role that is trained as a DeepSpeed engine: ZeRO stage 2 spreads gradients and optimizer over processes, 3 the weights too.

Each engine computes in the recipe's precision and keeps fp32 masters of what it trains. It is the only user of its module:
calls that want gradients go through the engine, all others to the module, whose weights are let go of afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amd_plugin.config import TrainConfig
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.models.roles import Role
from amd_plugin.sharding.frozen import gathering, partition
from amd_plugin.sharding.setup import deepspeed_for
from amd_plugin.sharding.shares import Shares

# Elements reduced at a time, as in recipes/launch/deepspeed_trained_zero3.json.
BUCKET = 100_000_000


def engine_for(
    role: Role, optimizer: Any, train: TrainConfig, accelerator: Any, how: str, read: TensorReader | None = None
) -> tuple[Any, Any]:
    """(engine, its torch optimizer) for `role`, whose network and shares are set to it.

    Args:
        role: with a network of its own, whole or with parameters on the meta device.
        optimizer: parameters -> torch optimizer.
        train: clipping and accumulation.
        how: ``zero2`` or ``zero3``.
        read: values of parameters on the meta device, as for `partition`.

    Raises:
        MissingDependency: without deepspeed.
    """
    deepspeed, network = deepspeed_for(accelerator), role.network
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    exact = {name: p.data for name, p in role.named_parameters().items() if p.dtype != dtype}
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    config = _config(role, train, accelerator, how)
    if how == "zero3":
        partition(network, accelerator, config, read)
    else:
        network.to(accelerator.device)
    made = optimizer(role.parameters())
    engine, *_ = deepspeed.initialize(model=network, optimizer=made, config=config, dist_init_required=False)
    network.eval()
    role.dtype, role.autocast, role.wrapped = dtype, False, engine
    role.shares = Shares(engine.optimizer, role.named_parameters())
    for name, value in exact.items():
        role.shares.take(role.shares.flat, name, _everyones(value, name, accelerator, read))
    if how == "zero3":
        _release_after_calls(network, engine)
    return engine, made


def _everyones(value: Tensor, name: str, accelerator: Any, read: TensorReader | None) -> Tensor:
    """`value`, or what the first process reads instead, in fp32 on this process's device."""
    if not value.is_meta:
        return value.to(accelerator.device)
    whole = torch.empty(value.shape, dtype=value.dtype, device=accelerator.device)
    if accelerator.is_main_process and read is not None:
        whole.copy_(read(name))
    dist.broadcast(whole, 0)
    return whole


def _release_after_calls(network: nn.Module, engine: Any) -> None:
    """ZeRO-3 keeps weights gathered after a call without gradients, for a backward pass that never comes."""
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()

    def release(*call: Any) -> None:
        if not torch.is_grad_enabled():
            coordinator.release_and_reset_all(network)

    network.register_forward_hook(release)


def _config(role: Role, train: TrainConfig, accelerator: Any, how: str) -> dict[str, Any]:
    bucket = min(sum(p.numel() for p in role.parameters()), BUCKET)
    zero = {
        **(gathering(role.network) if how == "zero3" else {"stage": 2}),
        "reduce_bucket_size": bucket,
        "overlap_comm": accelerator.device.type != "cpu",
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip_norm,
        "zero_allow_untested_optimizer": True,
        # Stage 2 would step over a gradient that is not finite otherwise.
        "bf16": {"enabled": accelerator.mixed_precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
    }
