"""Measures anew what `amd-plugin plan` knows of the shipped recipes for large models: amd_plugin/plan/measured.json.

    python benchmarks/plan_traces.py      # about four minutes on one core; needs no GPU, no weights, no network

Run it where torch, diffusers or peft in constraints.txt change, or the code that builds or calls the networks. The tests hold
some of the numbers against fresh measurements.
"""

from __future__ import annotations

import json
import os
import tempfile

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.plan import measured, plan_with_changes

# Recipe, numbers of GPUs, GB per GPU, and overrides; with less memory the proposed changes are measured too.
PLANS = [
    ("sdxl_4step", 1, 80, []),
    ("sdxl_4step", 1, 24, []),
    ("sdxl_4step", 1, 80, ["model.roles=separate"]),
    ("sdxl_4step", 8, 80, ["train.accumulation=4"]),
    ("sdxl_4step", 8, 80, ["train.accumulation=2"]),
    ("wan21_1_3b_4step", 1, 24, []),
    ("wan21_1_3b_4step", 8, 40, ["train.accumulation=8"]),
    ("wan21_1_3b_4step", 8, 80, ["train.accumulation=4"]),
    ("wan21_14b_zero3", 64, 80, []),
    ("wan21_14b_zero3", 32, 80, []),
    ("wan21_14b_zero3", 8, 40, ["train.accumulation=8"]),
    ("wan21_14b_zero3", 64, 40, ["model.roles=separate", "distributed.trained=zero3"]),
]


def main() -> None:
    """Plans everything without what is known so far, and writes what was measured."""
    measured.FILE.write_text(json.dumps({"versions": {}, "numbers": {}}))
    plugins = get_plugin_manager()
    for name, gpus, gigabytes, overrides in PLANS:
        print(name, gpus, gigabytes, *overrides, flush=True)
        plan_with_changes(lambda more: recipe.load(name, plugins, [*overrides, *more]), plugins, gpus, gigabytes * 10**9)  # noqa: B023
    lines = ",\n".join(f'  "{key}": {json.dumps(numbers)}' for key, numbers in sorted(measured.known.items()))
    versions = json.dumps(measured.versions())
    measured.FILE.write_text(f'{{\n "versions": {versions},\n "numbers": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AMD_PLUGIN_CACHE"] = cache
        main()
