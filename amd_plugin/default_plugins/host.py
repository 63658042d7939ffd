"""The reference host's defaults as a plugin: DMD objectives, rewards, families, and the placement of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from amd_plugin.hookspecs import Objective, hookimpl
from amd_plugin.imported import Imported

if TYPE_CHECKING:  # a list of names must not wait for torch
    from torch import Tensor, nn


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """The objectives ``dmd``, ``decoupled_dmd`` and ``dmd2``."""
    return Imported({name: f"amd_plugin.objectives.dmd:{name}" for name in ("dmd", "decoupled_dmd", "dmd2")})


@hookimpl(trylast=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective:
    """The objective that the factory builds."""
    return factory(**options)


@hookimpl
def distill_rewards() -> Mapping[str, Callable[..., Any]]:
    """The rewards of `amd_plugin.rewards`, listed in docs/rewards.md. ``random`` and ``hackable`` are controls."""
    places = {
        "aesthetic": ".aesthetic:AestheticReward",
        "classifier": ".classifier:ClassifierReward",
        "clip": ".clip:ClipReward",
        "hackable": ".controls:HackableReward",
        "hpsv2": ".hps:HPSv2Reward",
        "image_reward": ".image_reward:ImageReward",
        "pickscore": ".clip:pickscore",
        "random": ".controls:RandomReward",
        "video": ".video:VideoReward",
        "scenes": ".scenes:SceneReward",
        "vlm": ".vlm:VLMReward",
    }
    return Imported(places, "amd_plugin.rewards.builtin")


@hookimpl
def distill_families() -> Mapping[str, type[Any]]:
    """The families of SDXL, SD3, Wan and DiT, by the class of their pipeline."""
    places = {
        "StableDiffusionXLPipeline": ".sdxl:SDXL", "StableDiffusion3Pipeline": ".sd3:SD3", "WanPipeline": ".wan:Wan",
        "DiTPipeline": ".dit:DiT",
    }  # fmt: skip
    return Imported(places, "amd_plugin.models.families")


@hookimpl(trylast=True)
def distill_prepare_frozen(
    module: nn.Module, accelerator: Any, options: Mapping[str, Any], read: Callable[[str], Tensor] | None
) -> nn.Module:
    """The whole network on this process's device, or this process's shard, by option ``distributed.teacher``."""
    sharding = options.get("distributed", {}).get("teacher", "none")
    if sharding == "none":
        return module.to(accelerator.device)
    from amd_plugin.sharding.frozen import shard

    return shard(module, accelerator, offload=sharding == "zero3_offload", read=read)
