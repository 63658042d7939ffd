"""How often the reward-hacking alarm rings in honest runs, and how often in runs on a reward that is made to be hacked.

    python benchmarks/hacking_alarm.py --seeds 3

Runs the shipped recipes as they are (every seed trains its own teacher) through `amd-plugin compare`'s machinery, so that
finished runs are kept and not run again, then reads each run's metrics.jsonl. About 20 minutes on two cores.
"""

import argparse
from pathlib import Path

from rich.console import Console

from amd_plugin.evaluate.comparison.compare import Arm, compare, parse_seeds
from amd_plugin.host.running.run_log import read

ARMS = {
    "dmd": Arm("dmd", "dmd"),
    "amd": Arm("amd", "amd"),
    "amd, random reward": Arm("amd_random_reward", "amd", ("rewards=[{name: random}]",)),
    "amd, hackable reward": Arm("amd_hackable_reward", "amd", ("rewards=[{name: hackable}]",)),
}


def rings(run: Path) -> list[int]:
    """Steps of the evaluations after which the alarm rang."""
    return [line["step"] for line in read(run / "metrics.jsonl") if line.get("hacking_alarm")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["modes2d", "digits"])
    parser.add_argument("--seeds", default="3", help="how many, or a comma-separated list")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=Path("runs/hacking_alarm"))
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    seeds = parse_seeds(options.seeds)
    lines = ["| recipe | run | alarm in | first rang at step, by seed |", "|---|---|---|---|"]
    for recipe in options.recipes:
        folder = options.output / recipe
        compare(recipe, [*ARMS.values()], seeds, options.overrides, folder, options.workers, Console())
        for title, arm in ARMS.items():
            steps = [rings(folder / "arms" / arm.name / f"seed-{seed}") for seed in seeds]
            first = ", ".join(str(found[0]) if found else "-" for found in steps)
            lines.append(f"| {recipe} | {title} | {sum(map(bool, steps))} of {len(seeds)} seeds | {first} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
