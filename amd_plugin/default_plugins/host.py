"""What the host brings itself, as a plugin of itself: plain objectives, its tasks' rewards, a teacher left whole or sharded."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from amd_plugin.hookspecs import Objective, hookimpl


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """``dmd``, ``decoupled_dmd`` and ``dmd2``."""
    from amd_plugin.objectives.dmd import decoupled_dmd, dmd, dmd2

    return {"dmd": dmd, "decoupled_dmd": decoupled_dmd, "dmd2": dmd2}


@hookimpl(trylast=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective:
    """The factory itself."""
    return factory(**options)


@hookimpl
def distill_rewards() -> Mapping[str, Callable[..., Any]]:
    """Those of `amd_plugin.rewards`; docs/rewards.md lists them. ``random`` and ``hackable`` are controls."""
    from amd_plugin.rewards.builtin import aesthetic, classifier, clip, controls, hps, image_reward, video, vlm

    return {
        "aesthetic": aesthetic.AestheticReward,
        "classifier": classifier.ClassifierReward,
        "clip": clip.ClipReward,
        "hackable": controls.HackableReward,
        "hpsv2": hps.HPSv2Reward,
        "image_reward": image_reward.ImageReward,
        "pickscore": clip.pickscore,
        "random": controls.RandomReward,
        "video": video.VideoReward,
        "vlm": vlm.VLMReward,
    }


@hookimpl
def distill_families() -> Mapping[str, type[Any]]:
    """SDXL, SD3, Wan and DiT."""
    from amd_plugin.models.families import dit, sd3, sdxl, wan

    return {family.pipeline: family for family in (sdxl.SDXL, sd3.SD3, wan.Wan, dit.DiT)}


@hookimpl(trylast=True)
def distill_prepare_frozen(
    module: nn.Module, accelerator: Any, options: Mapping[str, Any], read: Callable[[str], Tensor] | None
) -> nn.Module:
    """A whole copy on this process's device, or its share of one where ``distributed.teacher`` asks for that."""
    how = options.get("distributed", {}).get("teacher", "none")
    if how == "none":
        return module.to(accelerator.device)
    from amd_plugin.sharding.frozen import shard

    return shard(module, accelerator, offload=how == "zero3_offload", read=read)
