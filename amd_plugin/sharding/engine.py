"""A trained role as a DeepSpeed engine: ZeRO stage 2 shards gradients and optimizer state over processes, stage 3 weights too.

Each engine computes in the recipe's precision and keeps fp32 master weights. It is the only user of its module. Calls with
gradients go through the engine, all others to the module, whose weights are released afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from amd_plugin.config import TrainConfig
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.models.roles import Role
from amd_plugin.sharding.frozen import partition, stage3
from amd_plugin.sharding.setup import deepspeed_for
from amd_plugin.sharding.shares import Shares

# The number of elements reduced at a time, as in recipes/launch/deepspeed_trained_zero3.json.
BUCKET = 100_000_000


class EngineSettings(NamedTuple):
    """The settings that all engines of a run share.

    Attributes:
        accelerator: the run's processes and precision.
        train: clipping and accumulation.
        stage: the ZeRO stage, ``zero2`` or ``zero3``.
        read: the reader of parameters on the meta device; None where none are there.
    """

    accelerator: Accelerator
    train: TrainConfig
    stage: str
    read: TensorReader | None = None


def engine_for(
    role: Role, optimizer: Callable[[], torch.optim.Optimizer], settings: EngineSettings
) -> tuple[Any, torch.optim.Optimizer, Shares]:
    """(DeepSpeed engine, torch optimizer that it drives, shares of the weights) for `role`, which uses the engine from now on.

    Args:
        role: the role, with a network of its own, whole or with parameters on the meta device.
        optimizer: the factory of the torch optimizer of the role's parameters, called when these are placed.
        settings: the settings of all engines.

    Raises:
        MissingDependency: without deepspeed.
    """
    accelerator, network = settings.accelerator, role.network
    deepspeed = deepspeed_for(accelerator)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    exact = {name: p.data for name, p in role.named_parameters().items() if p.dtype != dtype}
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    config = _config(role, settings)
    if settings.stage == "zero3":
        partition(network, accelerator, config, settings.read)
    else:
        network.to(accelerator.device)
    torch_optimizer = optimizer()
    engine, *_ = deepspeed.initialize(model=network, optimizer=torch_optimizer, config=config, dist_init_required=False)
    network.eval()
    role.dtype, role.autocast, role.wrapped = dtype, False, engine
    role.shares = shares = Shares(engine.optimizer, role.named_parameters())
    for name, value in exact.items():
        shares.take(shares.flat, name, _broadcast(value, name, settings))
    if settings.stage == "zero3":
        _release_after_calls(network, engine)
    return engine, torch_optimizer, shares


def _broadcast(value: Tensor, name: str, settings: EngineSettings) -> Tensor:
    """`value` on this process's device; for one on the meta device, what the first process reads."""
    accelerator = settings.accelerator
    if not value.is_meta:
        return value.to(accelerator.device)
    whole = torch.empty(value.shape, dtype=value.dtype, device=accelerator.device)
    if accelerator.is_main_process and settings.read is not None:
        whole.copy_(settings.read(name))
    dist.broadcast(whole, 0)
    return whole


def _release_after_calls(network: nn.Module, engine: Any) -> None:
    """Releases weights after calls without gradients, for which ZeRO-3 keeps them until a backward pass that never comes."""
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()

    def release(*_: Any) -> None:
        if not torch.is_grad_enabled():
            coordinator.release_and_reset_all(network)

    network.register_forward_hook(release)


def _config(role: Role, settings: EngineSettings) -> dict[str, Any]:
    accelerator, train = settings.accelerator, settings.train
    bucket = min(sum(p.numel() for p in role.parameters()), BUCKET)
    zero = {
        **(stage3(role.network) if settings.stage == "zero3" else {"stage": 2}),
        "reduce_bucket_size": bucket,
        "overlap_comm": accelerator.device.type != "cpu",
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": train.clip_norm,
        "zero_allow_untested_optimizer": True,
        # Without the check, stage 2 would apply the update of a gradient that is not finite.
        "bf16": {"enabled": accelerator.mixed_precision == "bf16", "check_grad_overflow": True},
        "zero_optimization": zero,
    }
