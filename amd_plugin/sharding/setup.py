"""The import of DeepSpeed: quiet, on accelerate's processes, and without compiling anything."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch.distributed as dist

from amd_plugin.errors import InputError, MissingDependency
from amd_plugin.launcher import launcher_number

BY_HAND = "On CPUs create the Accelerator with InitProcessGroupKwargs(backend='gloo')"


def deepspeed_for(accelerator: Any) -> Any:
    """The module `deepspeed`, with its communication set up over `accelerator`'s processes; one process needs no launcher.

    Raises:
        MissingDependency: if DeepSpeed cannot be imported.
        InputError: if accelerate, torch.distributed and DeepSpeed disagree about processes or devices.
    """
    device = accelerator.device.type
    if device == "cpu":
        # DeepSpeed would otherwise use a GPU that the run is not meant to use.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(accelerator.local_process_index))
    try:
        import deepspeed
    except ImportError as error:
        message = f"distributed: sharding needs deepspeed, which cannot be imported: {error}"
        raise MissingDependency(f"{message}. Install it (Linux only), or set teacher and trained to none") from error

    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile this all-reduce for inference at every start, and nothing here calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        if (launched := launcher_number("WORLD_SIZE", 1)) > 1:
            raise InputError(
                f"WORLD_SIZE is {launched}, and accelerate has made no process group. Start with torchrun or "
                f"accelerate launch. {BY_HAND}"
            )
        store = dist.HashStore()  # type: ignore[attr-defined] # exists, but torch's own list of exports lacks it
        dist.init_process_group("gloo" if device == "cpu" else "nccl", store=store, rank=0, world_size=1)
    if accelerator.num_processes != dist.get_world_size():
        raise InputError(
            f"accelerate sees {accelerator.num_processes} processes, torch.distributed {dist.get_world_size()}. {BY_HAND}"
        )
    if (other := deepspeed.accelerator.get_accelerator().device_name()) != device:
        raise InputError(f"DeepSpeed runs on {other}, accelerate on {device}. Set DS_ACCELERATOR={device}")
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, dist_init_required=False)
    return deepspeed
