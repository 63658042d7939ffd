"""Forward passes and time per cycle in the real hosts, with AMD and without it ("stock").

    make install && .venv/bin/python -m pytest tests/adapters/test_hosts.py      # once: installs the hosts in .venv-hosts
    .venv/bin/python benchmarks/host_forwards.py

N = 4 student steps. A cycle is one student and four fake-score updates in ModelOpt, and five critic updates with one student
update in FastVideo. Networks are tiny, so the ratio of times is an upper bound of the adapters' own cost. The counts hold for
any size.
"""

import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CYCLES = 40


def modelopt() -> None:
    """Counts and times ModelOpt's pipeline."""
    import torch
    from modelopt.torch.fastgen import DMDPipeline
    from test_modelopt import batch, brightness, pipeline

    from amd_plugin.adapters.modelopt import AMDPipeline

    arms = {"stock": pipeline(DMDPipeline), "AMD": pipeline(AMDPipeline, reward=brightness)}
    calls = dict.fromkeys(arms, 0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for name, pipe in arms.items():

        def count(module: Any, args: Any, output: Any, name: str = name) -> None:
            calls[name] += 1

        for role in (pipe.student, pipe.teacher, pipe.fake_score):
            role.register_forward_hook(count)
    for cycle in range(CYCLES):
        for name in random.sample(list(arms), 2):
            torch.manual_seed(cycle)
            start = time.perf_counter()
            for turn in range(5):
                latents, noise, condition, negative = batch(5 * cycle + turn)
                if turn:
                    losses = arms[name].compute_fake_score_loss(latents, noise, condition)
                else:
                    losses = arms[name].compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative)
                losses["total"].backward()
            seconds[name].append(time.perf_counter() - start)
    show("ModelOpt", {name: count / CYCLES for name, count in calls.items()}, seconds)


def fastvideo() -> None:
    """Counts and times FastVideo's trainer."""
    import tempfile

    import fastvideo.train.trainer
    import torch
    import yaml
    from fastvideo.train.entrypoint.train import run_training_from_config
    from fastvideo.train.models.base import ModelBase
    from toy_fastvideo import OURS, STOCK, Log, Toy, settings

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(random.randint(20000, 60000)), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    fastvideo.train.trainer.build_tracker = lambda *args, **kwargs: Log()
    ModelBase.device = torch.device("cpu")
    reward = {"reward": {"name": "random"}}
    arms = {"stock": (STOCK, None), "AMD": (OURS, reward), "AMD, fast_rollout": (OURS, {**reward, "fast_rollout": True})}
    calls: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(3):
            for name in random.sample(list(arms), 3):
                method, amd = arms[name]
                path = Path(folder, "run.yaml")
                path.write_text(
                    yaml.safe_dump(settings(Path(folder), method, amd, steps=5 * CYCLES, generator_update_interval=5))
                )
                Toy.calls, start = [], time.perf_counter()
                run_training_from_config(str(path))
                seconds[name].append(time.perf_counter() - start)
                calls[name] = len(Toy.calls) / CYCLES
    show("FastVideo", calls, seconds)


def show(host: str, calls: dict[str, float], seconds: dict[str, list[float]]) -> None:
    """Prints the lines of one host."""
    for name, count in calls.items():
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["stock"])
        print(f"RESULT {host:9} {name:18} {count:5.1f} forwards per cycle, time {ratio:.2f} of stock")


def main() -> None:
    """Runs this script once per host, with the host's own packages; with a host's name, measures that host."""
    if len(sys.argv) > 1:
        return {"modelopt": modelopt, "fastvideo": fastvideo}[sys.argv[1]]()
    sys.path.insert(0, str(ROOT))
    from tests.helpers.hosts import environment

    for host in ("modelopt", "fastvideo"):
        env = environment(host)  # type: ignore[no-untyped-call]  # tests have no types
        env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT / "tests" / "adapters" / "inside")])
        # Importing conftest declares the operators that FastVideo expects of torchvision.
        code = f"import conftest, runpy, sys; sys.argv = ['x', {host!r}]; runpy.run_path({__file__!r}, run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT")]
        print("\n".join(lines) if done.returncode == 0 else done.stdout + done.stderr)
    return None


if __name__ == "__main__":
    main()
