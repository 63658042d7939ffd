"""A GPU's time and memory for a cycle at true size, with random weights and no network: Wan2.1-1.3B and SDXL.

    python benchmarks/gpu.py --output docs/results/gpu.json       # on one GPU; under 25 minutes on an H100
    python benchmarks/gpu.py --tiny                               # the same on tiny pipelines, for the tests

Pipelines have the published configs of networks and autoencoders, and text encoders of one layer, whose output has the right
shape; embeddings are made once, so that encoders cost nothing here. Each arm is a process of its own, so that memory starts
empty; an arm that does not fit, or fails, stands in the table with its reason. Times are those of the second cycle on. Model
FLOPs utilisation is the planner's count of operations over the rate of a bf16 matmul measured in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "red", "fox", "blue", "boat"]
RECIPES = {"wan": "wan21_1_3b_4step", "sdxl": "sdxl_4step"}
SHARED = ("model.roles=shared_base", "train.student_lr=1e-5", "train.fake_lr=1e-5")
SEPARATE = ("model.roles=separate",)
HARVEST, FRESH = "train.rollouts=harvest", "train.rollouts=fresh"
FP32 = ("distributed.mixed_precision='no'", "model.dtype=fp32")
# What an arm changes: the model, the objective, and settings.
ARMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "wan, shared base, dmd, fresh": ("wan", "dmd", (*SHARED, FRESH)),
    "wan, shared base, dmd, harvest": ("wan", "dmd", (*SHARED, HARVEST)),
    "wan, shared base, amd, harvest": ("wan", "amd", (*SHARED, HARVEST)),
    "wan, separate, amd, harvest": ("wan", "amd", (*SEPARATE, HARVEST)),
    "wan, teacher in ZeRO-3 on one rank, amd, harvest": ("wan", "amd", (*SEPARATE, HARVEST, "distributed.teacher=zero3")),
    "wan, short, fp32": ("wan", "amd", (*SHARED, HARVEST, "model.frames=5", *FP32)),
    "wan, short, bf16": ("wan", "amd", (*SHARED, HARVEST, "model.frames=5")),
    "sdxl, shared base, dmd, fresh": ("sdxl", "dmd", (*SHARED, FRESH)),
    "sdxl, shared base, dmd, harvest": ("sdxl", "dmd", (*SHARED, HARVEST)),
    "sdxl, shared base, amd, harvest": ("sdxl", "amd", (*SHARED, HARVEST)),
    "sdxl, separate, amd, harvest": ("sdxl", "amd", (*SEPARATE, HARVEST)),
}  # fmt: skip


def save_pipeline(model: str, folder: Path, *, tiny: bool, device: str) -> None:
    """Saves a pipeline with random weights: of true size, or tiny."""
    import transformers
    from diffusers import AutoencoderKL, AutoencoderKLWan, UNet2DConditionModel, WanTransformer3DModel

    from amd_plugin.models.embedded.tiny import tiny_sdxl, tiny_wan
    from amd_plugin.models.shipped_configs import FOLDER

    (folder / "prompts.txt").write_text("a red fox\na blue boat\n")
    pipeline: Any = tiny_sdxl(WORDS, size=16) if model == "sdxl" else tiny_wan(WORDS)
    if not tiny:
        configs = FOLDER / {"sdxl": "sdxl", "wan": "wan21_1_3b"}[model]
        name, network, autoencoder = {
            "sdxl": ("unet", UNet2DConditionModel, AutoencoderKL),
            "wan": ("transformer", WanTransformer3DModel, AutoencoderKLWan),
        }[model]
        parts = {name: network.from_config(network.load_config(configs / name))}
        parts["vae"] = autoencoder.from_config(autoencoder.load_config(configs / "vae"))
        words = {
            "vocab_size": len(pipeline.tokenizer),
            "num_hidden_layers": 1,
            "num_layers": 1,
            "intermediate_size": 64,
            "d_ff": 64,
        }
        for encoder in ("text_encoder", *(["text_encoder_2"] if model == "sdxl" else [])):
            config = transformers.AutoConfig.from_pretrained(configs / encoder)
            tokens = pipeline.tokenizer
            config.update(words | {"pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id})
            parts[encoder] = type(getattr(pipeline, encoder))(config)
        for part, module in parts.items():
            pipeline.register_modules(**{part: module.to(device, torch.bfloat16).cpu()})
        for tokenizer in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", pipeline.tokenizer)):
            tokenizer.model_max_length = 77 if model == "sdxl" else 512
    pipeline.save_pretrained(folder)


def settings(model: str, folder: Path, *, tiny: bool) -> tuple[str, ...]:
    """What all arms of `model` change in its recipe: no network, two samples of one prompt, one at a time."""
    common = (
        f"model.path={folder}", f"data.source={folder / 'prompts.txt'}", "rewards=[{name: random}]", "train.batch_size=2",
        "train.group_size=2", "train.accumulation=2", "train.fake_updates=2", "train.trackers=[]", "evaluate.samples=10",
    )  # fmt: skip
    if not tiny:
        return common
    small = ("model.lora={rank: 4, target_modules: [to_q, to_v]}",)
    return (*common, *small, *(("model.pixels=[16, 16]", "model.frames=5", "model.text_length=8") if model == "wan" else ()))


def matmul_rate(device: str) -> float:
    """Operations per second of a large bf16 matmul, the median of ten."""
    size = 8192 if device == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(13):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(arm: str, folder: Path, *, tiny: bool, cycles: int) -> dict[str, Any]:
    """One arm: seconds per turn and cycle, peak memory and the plan's, utilisation, and the losses of the first cycle."""
    from accelerate import Accelerator

    import amd_plugin
    from amd_plugin import recipe
    from amd_plugin.host.training.trainer import Trainer
    from amd_plugin.plan.planner import plan

    model, objective, changes = ARMS[arm]
    device, plugins = "cuda" if torch.cuda.is_available() else "cpu", amd_plugin.get_plugin_manager()
    if any("zero3" in change for change in changes):
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    overrides = (*settings(model, folder, tiny=tiny), *changes)
    if device == "cpu":
        overrides = (*(o for o in overrides if "mixed_precision" not in o), "distributed.mixed_precision='no'")
    loaded = recipe.load(RECIPES[model], plugins, overrides, objective)
    planned = plan(recipe.load(RECIPES[model], plugins, overrides, objective), plugins, 1, 80_000_000_000)
    precision = loaded.config.distributed.mixed_precision
    trainer = Trainer(loaded, plugins, Accelerator(cpu=device == "cpu", mixed_precision=precision))
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, turn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            result = turn(*arguments, **options)
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            return result

        return run

    setattr(trainer, "fake_score_turn", timed("fake_score", trainer.fake_score_turn))  # noqa: B010 (mypy: a method)
    setattr(trainer, "student_turn", timed("student", trainer.student_turn))  # noqa: B010
    cycle = timed("cycle", trainer.cycle)
    losses = {name: float(value) for name, value in cycle().items() if name in ("loss/student", "loss/fake_score")}
    seconds.clear()
    for _ in range(cycles):
        cycle()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rate = matmul_rate(device)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    utilisation = sum(planned.flops.values()) / medians["cycle"] / rate
    return {
        "seconds": medians, "peak": peak, "planned": max(planned.phases.values()), "operations": sum(planned.flops.values()),
        "matmul": rate, "utilisation": utilisation, "losses": losses,
    }  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table of all arms, in Markdown."""
    lines = [
        "| arm | seconds per cycle | fake-score turn | student turn | peak memory, GB | planned, GB | utilisation |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, result in results.items():
        if "failed" in result:
            lines.append(f"| {arm} | {result['failed']} | | | | | |")
            continue
        seconds = [f"{result['seconds'][name]:.2f}" for name in ("cycle", "fake_score", "student")]
        peak = "-" if result["peak"] is None else f"{result['peak'] / 1e9:.1f}"
        cells = [arm, *seconds, peak, f"{result['planned'] / 1e9:.1f}", f"{result['utilisation']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_arm(arm: str, folder: Path, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), "--cycles", str(given.cycles)]
    command += ["--tiny"] if given.tiny else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {seconds:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
        return result
    reasons = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failed": reasons[-1][:200] if reasons else f"ended with {done.returncode}"}


def main() -> None:
    """Measures all arms, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--tiny", action="store_true", help="tiny pipelines instead of true sizes")
    parser.add_argument("--cycles", type=int, default=1, help="number of cycles that count, after one that does not")
    parser.add_argument("--minutes", type=float, default=25, help="time after which no further arm starts")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        print("RESULT " + json.dumps(measure(given.arm, given.folder, tiny=given.tiny, cycles=given.cycles)))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    start, results = time.monotonic(), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch:
        for arm in given.arms:
            model = ARMS[arm][0]
            folder = Path(scratch, model)
            if not folder.exists():
                folder.mkdir()
                save_pipeline(model, folder, tiny=given.tiny, device=device)
            left = given.minutes * 60 - (time.monotonic() - start)
            results[arm] = run_arm(arm, folder, given, left) if left > 0 else {"failed": "no time left"}
            if given.output:
                given.output.write_text(json.dumps({"device": name, "torch": torch.__version__, "arms": results}, indent=1))
    print(f"{name}, torch {torch.__version__}\n\n{table(results)}")


if __name__ == "__main__":
    main()
