"""What a run survives: kills, full disks, flipped bytes, signals, a rank that dies, and a soak with slow and failing rewards.

    python benchmarks/reliability.py --kills 500                       # all of it, resumable: run it again after a stop
    python benchmarks/reliability.py --short                           # as the tests do
    python benchmarks/reliability.py --only soak --soak 3600
    python benchmarks/reliability.py --checksums                       # what they take, and nothing else

Every try is a small run of modes2d in a process of its own, forked after the imports. It is disturbed, goes on with
`resume="auto"` until it is complete, and is compared with a run that nothing disturbed: it has to have the same files, byte by
byte, checkpoints and pictures included, but for those that tell of its starts and faults. Kills and signals come at a random
moment of the whole run, or inside a named phase. The moment is a number of calls of functions, of which the undisturbed run
says how many a phase makes: a clock that does not depend on the machine's speed.

A try survived where it ended with an error for people or not at all, went on, and is equal. Results are lines of results.jsonl
in the folder --output. `reliability_faults.py` has the faults, `reliability_run.py` the run.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# Before libraries read it.
os.environ |= {"OMP_NUM_THREADS": "1", "AMD_PLUGIN_LOAD": "amd", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability_bench import Bench, cost_of_checksums, wrong
from reliability_faults import disk, flipped, kills, ranks, signals, soak

KINDS = {"kills": kills, "disk": disk, "bytes": flipped, "signals": signals, "ranks": ranks, "soak": soak}


def main() -> int:
    """Does what is asked for and not done yet, and prints the table; 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="processes killed, one to five in a try")
    parser.add_argument("--faults", type=int, default=40, help="tries each of full disks, flipped bytes and signals")
    parser.add_argument("--ranks", type=int, default=26, help="tries with two processes, one of which is killed")
    parser.add_argument("--soak", type=float, default=3600, help="seconds")
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--short", action="store_true", help="50 kills, 2 of each fault, a soak of 15 s")
    parser.add_argument("--checksums", action="store_true", help="what the checksums of a file take, instead of all tries")
    parser.add_argument("--output", type=Path, default=Path("runs") / "reliability")
    given = parser.parse_args()
    if given.checksums:
        given.output.mkdir(parents=True, exist_ok=True)
        print(cost_of_checksums(given.output))
        return 0
    count, faults, two, seconds = (50, 2, 1, 15) if given.short else (given.kills, given.faults, given.ranks, given.soak)
    counts = {"kills": count, "disk": faults, "bytes": faults, "signals": faults, "ranks": two, "soak": seconds}
    bench = Bench(given.output.absolute())
    for kind in given.only or KINDS:
        KINDS[kind](bench, counts[kind])
    print(bench.table())
    bad = [row for row in bench.rows if wrong(row)]
    for row in bad:
        print(json.dumps(row))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
