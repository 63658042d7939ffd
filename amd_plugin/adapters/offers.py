"""What each host offers an objective, through its adapter; whatever an objective needs beside that is refused by name.

The names are fields of `amd_plugin.hookspecs.Needs`, and those of `BESIDE_NEEDS`. docs/hosts.md has them as a table.
"""

from __future__ import annotations

from amd_plugin.hookspecs import EVERYTHING, IN_WORDS
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.options import metadata

# How often prompts repeat is up to the user's data.
SHARED = frozenset({"reward", "group_size", "recommended_group_size", "uncond", "fake_score_weight"})
LEVELS = frozenset({"noise_level", "fake_score_noise_level"})
# What no option asks for by name: it is there or not.
BESIDE_NEEDS = {
    "rungs": "statistics of rewards for each exit rung",
    "harvest": "one rollout for all updates of a cycle (`rollouts: harvest`)",
    "rung_conditioning": "a fake score that is conditioned on the exit rung",
    "alarm": "the alarm for hacked rewards, and `sensor/NAME`, at evaluations",
}
MODELOPT = SHARED | LEVELS | {"fake_score_outcome", "reward_gradient", "rungs", "harvest"}
FASTVIDEO = SHARED | LEVELS | {"rungs", "harvest"}
FASTGEN = SHARED | LEVELS
LIGHTX2V_IMAGE = SHARED | LEVELS | {"rungs"}
LIGHTX2V_VIDEO = LIGHTX2V_IMAGE | {"reward_gradient"}
HOSTS = {
    "ModelOpt": MODELOPT,
    "FastVideo": FASTVIDEO,
    "FastGen": FASTGEN,
    "LightX2V, video": LIGHTX2V_VIDEO,
    "LightX2V, images": LIGHTX2V_IMAGE,
    "reference host": EVERYTHING | BESIDE_NEEDS.keys(),
}
CONDITIONS = {
    ("ModelOpt", "fake_score_outcome"): "networks of a known family",
    ("ModelOpt", "rungs"): "with `backward_simulation`",
    ("ModelOpt", "harvest"): "with `backward_simulation`",
    ("FastVideo", "rungs"): "with `fast_rollout` or `rollouts: harvest`",
    ("FastVideo", "harvest"): "`DMD2Method` with `rollout_mode: simulate`",
}


def table() -> str:
    """The Markdown table of what each host offers."""
    lines = [f"| | options of `amd` | {' | '.join(HOSTS)} |", f"|---|---|{'---|' * len(HOSTS)}"]
    for name, words in (IN_WORDS | BESIDE_NEEDS).items():
        if name == "recommended_group_size":  # the same thing as `group_size` to a host
            continue
        cells = [CONDITIONS.get((host, name), "yes") if name in offers else "no" for host, offers in HOSTS.items()]
        lines.append(f"| {words} | {', '.join(f'`{option}`' for option in options_of(name))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def options_of(need: str) -> list[str]:
    """The options of AMD that have a need."""
    return [option for option, field in AMDOptions.model_fields.items() if metadata(field).get("needs") == need]
