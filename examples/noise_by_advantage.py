"""A reward-guided noise schedule as a plugin, and what it is worth: samples that do badly are re-noised to higher levels.

    python examples/noise_by_advantage.py --seeds 4          # a few minutes

The idea: where a student's sample is far from anything the teacher knows, its guidance makes sense at high noise only. The
result, on `modes2d` with an unreliable teacher, is in docs/hooks.md. It is here to show how a plugin takes part in what a host
does, without a change to either.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

import amd_plugin
from amd_plugin import recipe
from amd_plugin.host import run


class NoiseByAdvantage:
    """Moves the level of a failing sample up, by as much as it fails; and AMD down again when fewer samples fail.

    Args:
        reach: share of the way to the highest level that a sample with advantage -1 is moved.
        zone: share of samples in the zone below which AMD's strength fades.
    """

    def __init__(self, reach: float = 0.5, zone: float = 0.1):
        self.reach, self.zone = reach, zone

    @amd_plugin.hookimpl
    def distill_sigma_sampler(self, options):
        """Called once, with the resolved recipe, or in another host with the objective's options alone."""
        _, highest = options.get("train", {}).get("sigma", (0.02, 0.98))

        def sampler(sigma, *, role, advantage, step, generator):
            if role != "student" or advantage is None:
                return sigma
            return sigma + self.reach * (-advantage).clamp(min=0) * (highest - sigma)

        return sampler

    @amd_plugin.hookimpl
    def distill_strength_schedule(self, step, max_steps, metrics):
        """Full strength while the zone is inhabited."""
        share = metrics.get("objective/zone_share", 1.0)
        return min(1.0, share / self.zone)


def evaluation(seed, overrides, plugin, folder):
    """Held-out metrics of one run."""
    plugins = amd_plugin.get_plugin_manager()
    if plugin is not None:
        plugins.register(plugin, "noise_by_advantage")
    loaded = recipe.load("modes2d", plugins, (*overrides, f"train.seed={seed}", "train.trackers=[]"), "amd")
    return run.train(loaded, plugins, folder)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds, from 0 on; by default 4")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as for amd-plugin train")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, plugin in (("amd", None), ("amd, noise by advantage", NoiseByAdvantage())):
            runs = [
                evaluation(seed, options.overrides, plugin, Path(folder) / f"{name}-{seed}") for seed in range(options.seeds)
            ]
            found[name] = {metric: [values[metric] for values in runs] for metric in runs[0]}
    for metric, values in found["amd"].items():
        moved = found["amd, noise by advantage"][metric]
        difference = statistics.fmean(b - a for a, b in zip(values, moved, strict=True))
        print(f"{metric}: {statistics.fmean(values):.3f} -> {statistics.fmean(moved):.3f} ({difference:+.3f})")


if __name__ == "__main__":
    main()
