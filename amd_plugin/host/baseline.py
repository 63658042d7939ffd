"""What the host brings itself, as a plugin of itself: plain objectives, the rewards of its tasks, a teacher left whole."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from amd_plugin.hookspecs import Objective, hookimpl


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """``dmd``, ``decoupled_dmd`` and ``dmd2``."""
    from amd_plugin.objective import DMDObjective, decoupled_dmd, dmd2

    return {"dmd": DMDObjective, "decoupled_dmd": decoupled_dmd, "dmd2": dmd2}


@hookimpl(trylast=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective:
    """The factory itself."""
    return factory(**options)


@hookimpl
def distill_rewards() -> Mapping[str, Callable[..., Any]]:
    """Those of `amd_plugin.rewards`; docs/rewards.md lists them. ``random`` and ``hackable`` are controls."""
    from amd_plugin.rewards import aesthetic, classifier, clip, controls, hps, image_reward, video, vlm

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
def distill_prepare_frozen(module: nn.Module, accelerator: Any) -> nn.Module:
    """A whole copy on this process's device."""
    return module.to(accelerator.device)
