"""Rate of reward-hacking alarms in honest runs, and in runs on a reward that is easy to hack.

    python benchmarks/hacking_alarm.py --seeds 3

Runs the shipped recipes with the runs of `amd-plugin compare`, so that finished ones are kept and not run again. Every seed
trains its own teacher. Then reads each run's metrics.jsonl. About 20 minutes on two cores.
"""

import argparse
from pathlib import Path

from rich.console import Console

from amd_plugin.evaluate.comparison.arms import Arm, parse_seeds
from amd_plugin.evaluate.comparison.compare import compare
from amd_plugin.evaluate.comparison.result import run_folder
from amd_plugin.host.running.run_log import read
from amd_plugin.plugins import get_plugin_manager

ARMS = {
    "dmd": Arm("dmd", "dmd"),
    "amd": Arm("amd", "amd"),
    "amd, random reward": Arm("amd_random_reward", "amd", ("rewards=[{name: random}]",)),
    "amd, hackable reward": Arm("amd_hackable_reward", "amd", ("rewards=[{name: hackable}]",)),
}


def alarms(run: Path) -> list[int]:
    """Steps of the evaluations with an alarm."""
    return [line["step"] for line in read(run / "metrics.jsonl") if line.get("hacking_alarm")]


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["modes2d", "digits"], help="names of the recipes")
    parser.add_argument("--seeds", default="3", help="number of seeds, or the seeds themselves separated by commas")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    parser.add_argument("--output", type=Path, default=Path("runs/hacking_alarm"), help="folder of the runs")
    parser.add_argument("--workers", type=int, help="number of worker processes [default: one per core]")
    options = parser.parse_args()
    seeds, plugins = parse_seeds(options.seeds), get_plugin_manager()
    lines = ["| recipe | run | alarm in | step of the first alarm, by seed |", "|---|---|---|---|"]
    for recipe in options.recipes:
        folder = options.output / recipe
        compare(
            recipe, [*ARMS.values()], seeds, options.overrides, folder, plugins, workers=options.workers, console=Console()
        )  # fmt: skip
        for title, arm in ARMS.items():
            steps = [alarms(run_folder(folder, arm.name, seed)) for seed in seeds]
            first = ", ".join(str(of_seed[0]) if of_seed else "-" for of_seed in steps)
            lines.append(f"| {recipe} | {title} | {sum(map(bool, steps))} of {len(seeds)} seeds | {first} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
