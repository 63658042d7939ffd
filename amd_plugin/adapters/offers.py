"""What each host offers an objective, through its adapter; whatever an objective needs beside that is refused by name.

The names are fields of `amd_plugin.hookspecs.Needs`, and those of `BESIDE_NEEDS`. docs/hosts.md has them as a table.
"""

from __future__ import annotations

from amd_plugin.hookspecs import EVERYTHING, IN_WORDS
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.options import metadata

# What every adapter offers. How often prompts repeat is up to the user's data.
OFFERS = frozenset({"reward", "group_size", "recommended_group_size", "uncond", "fake_score_weight", "fake_score_rung"})
LEVELS = frozenset({"noise_level", "fake_score_noise_level"})
# What no option asks for by name: it is there or not.
BESIDE_NEEDS = {
    "rungs": "statistics of rewards for each exit rung",
    "harvest": "one rollout for all updates of a cycle (`rollouts: harvest`)",
    "rung_conditioning": "a fake score that is conditioned on the exit rung",
    "outcome_lr": "a learning rate of its own for the table of outcomes",
    "repeats": "data whose rows stand several times in each joined batch",
    "alarm": "the alarm for hacked rewards, and `sensor/NAME`, at evaluations",
}
CONDITIONED = frozenset({"fake_score_outcome", "rungs", "rung_conditioning", "outcome_lr"})
FASTGEN = OFFERS | LEVELS | CONDITIONED | {"reward_gradient", "groups", "alarm", "replay"}
LIGHTX2V_VIDEO = LIGHTX2V_IMAGE = FASTGEN | {"repeats"}
LIGHTX2V_PHASED = LIGHTX2V_VIDEO - {"rung_conditioning", "replay"}
MODELOPT = FASTGEN | {"harvest"}
FASTVIDEO = MODELOPT | {"repeats"}
HOSTS = {
    "ModelOpt": MODELOPT,
    "FastVideo": FASTVIDEO,
    "FastGen": FASTGEN,
    "LightX2V, video": LIGHTX2V_VIDEO,
    "LightX2V, images": LIGHTX2V_IMAGE,
    "reference host": EVERYTHING | BESIDE_NEEDS.keys(),
}
CONDITIONS = {
    **{(host, "fake_score_outcome"): "networks of a known class" for host in HOSTS if host != "reference host"},
    **{(host, "rung_conditioning"): "networks of a known class" for host in HOSTS if host != "reference host"},
    ("ModelOpt", "rungs"): "with `backward_simulation`",
    ("ModelOpt", "harvest"): "with `backward_simulation`",
    ("ModelOpt", "rung_conditioning"): "with `backward_simulation`, networks of a known class",
    ("ModelOpt", "outcome_lr"): "in your optimizer",
    ("ModelOpt", "reward_gradient"): "where `decode` has a gradient",
    ("ModelOpt", "alarm"): "`AMDPipeline.validate`",
    ("FastVideo", "rungs"): "with `fast_rollout` or `rollouts: harvest`, and in self-forcing",
    ("FastVideo", "harvest"): "`DMD2Method` with `rollout_mode: simulate`",
    ("FastVideo", "repeats"): "with its loader of parquet files",
    ("FastVideo", "alarm"): "its validation callback",
    ("FastGen", "rungs"): "with `share_rungs`",
    ("FastGen", "reward_gradient"): "where its decoder has a gradient",
    ("FastGen", "alarm"): "its validation",
    ("LightX2V, video", "rung_conditioning"): "networks of a known class, not in `video_phased_dmd`",
    ("LightX2V, video", "replay"): "not in `video_phased_dmd`",
    ("LightX2V, video", "alarm"): "its inference",
    ("LightX2V, images", "reward_gradient"): "models with an `image_processor`",
    ("LightX2V, images", "alarm"): "its inference",
    ("reference host", "outcome_lr"): "`train.outcome_lr`",
    ("reference host", "repeats"): "`train.group_size`",
}
# Options of the adapters themselves.
OWN = {
    "rungs": ["share_rungs", "fast_rollout"],
    "rung_conditioning": ["rung_conditioning"],
    "outcome_lr": ["outcome_lr"],
    "repeats": ["group_size"],
    "alarm": ["held_out"],
}


def table() -> str:
    """The Markdown table of what each host offers."""
    lines = [f"| | options of `amd` | {' | '.join(HOSTS)} |", f"|---|---|{'---|' * len(HOSTS)}"]
    for name, words in (IN_WORDS | BESIDE_NEEDS).items():
        if name in ("recommended_group_size", "fake_score_rung"):  # to a host the same as `group_size`, and as `rungs`
            continue
        cells = [CONDITIONS.get((host, name), "yes") if name in offers else "no" for host, offers in HOSTS.items()]
        options = ", ".join(f"`{option}`" for option in OWN.get(name, options_of(name)))
        lines.append(f"| {words} | {options} | {' | '.join(cells)} |")
    return "\n".join(lines)


def options_of(need: str) -> list[str]:
    """The options of AMD that have a need."""
    return [option for option, field in AMDOptions.model_fields.items() if metadata(field).get("needs") == need]
