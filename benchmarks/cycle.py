"""The cost of a cycle, one student update and five of the fake score, beside the hosts' own trainers, in one interleaved run.

    make install && .venv/bin/python -m pytest tests/adapters/test_hosts.py      # once: installs the hosts in .venv-hosts
    .venv/bin/python benchmarks/cycle.py [--cycles 12] [--steps 4]

Every arm is a process with one thread around the same diffusers WanTransformer3DModel: same weights, batch, steps, guidance
with a teacher call of both conditions, precision (fp32) and Adam. Arms take turns, in a new random order each cycle, so that
they share the machine's moods. The hosts are their stock trainers: `DMDPipeline` of ModelOpt in the loop of its example,
re-noising with fresh noise as all others do, and `DMD2Method` in FastVideo's trainer; and both with AMD through our adapters.
Only the arms of AMD have a reward; it is random, so its cost is the decoder's.

    rows          samples that networks were called with, in units of the batch; by role, with and without graph
    calls         network calls by what ZeRO-3 would gather: once without graph, twice with one
    decoded       samples that were decoded and scored, in units of the batch

In a cycle the fake score is trained on five batches of samples in every arm. They are independent in the hosts and with fresh
rollouts, and come from one rollout of the batch where they are harvested: from 3 B other samples of it.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH, GROUP, FRAMES, EDGE, UPDATES = 8, 4, 5, 16, 5
WORDS = ["a", "red", "fox", "blue", "boat"]
OURS = {
    "ours, dmd, fresh": ("dmd",),
    "ours, dmd, harvest": ("dmd", "train.rollouts=harvest"),
    "ours, amd, fresh": ("amd",),
    "ours, amd, harvest": ("amd", "train.rollouts=harvest"),
    "ours, dmd, fresh, 4 micro-batches": ("dmd", "train.accumulation=4"),
    "ours, dmd, harvest, 4 micro-batches": ("dmd", "train.rollouts=harvest", "train.accumulation=4"),
}
STOCK = {"ModelOpt": "modelopt", "FastVideo": "fastvideo"}
REWARD: dict[str, Any] = {"reward": {"name": "random"}}
# The hosts' own trainers through our adapters.
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "ModelOpt, amd": ("modelopt", REWARD),
    "ModelOpt, amd, harvest": ("modelopt", REWARD | {"rollouts": "harvest"}),
    "FastVideo, amd": ("fastvideo", REWARD),
    "FastVideo, amd, fast_rollout": ("fastvideo", REWARD | {"fast_rollout": True}),
    "FastVideo, amd, harvest": ("fastvideo", REWARD | {"fast_rollout": True, "rollouts": "harvest"}),
}
HOST_OF = STOCK | {arm: host for arm, (host, _) in ADAPTED.items()}
ALL = [*OURS, *HOST_OF]
Cycle = Callable[[], None]


class Count:
    """Counts of what happens in a cycle.

    Attributes:
        counts: numbers by name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def watch(self, name: str, network: Any) -> None:
        """Counts the calls and rows of `network`, the network of a role."""
        import torch

        def called(module: Any, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            graph = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
            self.counts[f"{name} {'graph' if graph else 'no graph'}"] += len(x)
            self.counts["gathers"] += 2 if graph else 1

        network.register_forward_pre_hook(called, with_kwargs=True)

    def decoding(self, decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`decode`, with its samples counted."""

        def counted(samples: Any) -> Any:
            self.counts["decoded"] += len(samples)
            return decode(samples)

        return counted

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        counts, self.counts = dict(self.counts), Counter()
        return counts


def ours(folder: Path, steps: int, objective: str, *settings: str) -> tuple[Cycle, Count]:
    """A cycle of the reference host."""
    from accelerate import Accelerator

    import amd_plugin
    from amd_plugin import recipe
    from amd_plugin.host.training.trainer import Trainer

    prompts = folder / "prompts.txt"
    overrides = (
        f"model.path={folder}", "model.dtype=fp32", "model.roles=separate", f"model.pixels=[{EDGE}, {EDGE}]",
        f"model.frames={FRAMES}", "model.text_length=8", f"model.student_steps={steps}", f"data.source={prompts}",
        "rewards=[{name: random}]", f"train.batch_size={BATCH}", f"train.group_size={GROUP}", "train.accumulation=1",
        f"train.fake_updates={UPDATES}", "train.trackers=[]", "train.gradient_checkpointing=false", "evaluate.samples=10",
        "objective.guidance_scale=3", "distributed.mixed_precision='no'", "distributed.device=cpu", "train.fake_warmup=0",
        "model.rung_conditioning=false", "train.rollouts=fresh", *settings,
    )  # fmt: skip
    plugins = amd_plugin.get_plugin_manager()
    trainer = Trainer(recipe.load("wan21_1_3b_4step", plugins, overrides, objective), plugins, Accelerator(cpu=True))
    count = Count()
    for role in ("student", "fake_score", "teacher"):
        count.watch(role, getattr(trainer, role).network)
    if trainer.scoring is not None:
        trainer.backbone.decode = count.decoding(trainer.backbone.decode)
    return lambda: (trainer.cycle(), None)[1], count


def latents(folder: Path) -> tuple[int, ...]:
    """The shape of one sample, channels first."""
    return (1, FRAMES, EDGE, EDGE)


def networks(folder: Path) -> dict[str, Any]:
    """The three roles' networks, with the weights of the pipeline in `folder`."""
    from diffusers import WanTransformer3DModel

    made = {
        role: WanTransformer3DModel.from_pretrained(folder / "transformer") for role in ("student", "fake_score", "teacher")
    }
    made["teacher"].requires_grad_(False)
    return made


def modelopt(folder: Path, steps: int, amd: dict[str, Any] | None) -> tuple[Cycle, Count]:
    """A cycle of ModelOpt's stock pipeline, or of ours over it with the arguments `amd`."""
    import torch
    from modelopt.torch.fastgen import DMDConfig, DMDPipeline, EMAConfig
    from modelopt.torch.fastgen.config import SampleTimestepConfig

    made, count = networks(folder), Count()
    for role, network in made.items():
        count.watch(role, network)
    rungs = [0.999, *(round(1 - k / steps, 3) for k in range(1, steps)), 0.0]
    config = DMDConfig(
        pred_type="flow", num_train_timesteps=1000, student_sample_steps=steps, backward_simulation=True, guidance_scale=3.0,
        student_sample_type="sde",
        sample_t_cfg=SampleTimestepConfig(t_list=rungs, time_dist_type="shifted", shift=3.0), ema=EMAConfig(decay=0.99),
    )  # fmt: skip
    cls: Any = DMDPipeline
    if amd is not None:
        from amd_plugin.adapters.modelopt import AMDPipeline as cls

        amd = {**amd, "decode": count.decoding(lambda latents: latents)}
    pipe = cls(made["student"], made["teacher"], made["fake_score"], config, **(amd or {}))
    optimizers = {name: torch.optim.Adam(made[name].parameters(), lr=1e-6, fused=True) for name in ("student", "fake_score")}
    text = torch.randn(BATCH // GROUP, 8, made["student"].config.text_dim).repeat_interleave(GROUP, 0)

    def step(role: str, output: dict[str, Any]) -> None:
        output["total"].backward()
        torch.nn.utils.clip_grad_norm_(made[role].parameters(), 10.0)
        optimizers[role].step()
        optimizers[role].zero_grad()

    def cycle() -> None:
        for turn in range(UPDATES + 1):
            clean, noise = torch.randn(2, BATCH, *latents(folder))
            if turn < UPDATES:
                step("fake_score", pipe.compute_fake_score_loss(clean, noise, text))
            else:
                step("student", pipe.compute_student_loss(clean, noise, text, negative_encoder_hidden_states=0 * text))
                pipe.update_ema()

    return cycle, count


class Gate:
    """FastVideo's data: hands out the batches of one cycle for each line on the standard input.

    Args:
        answer: called before each cycle.
    """

    def __init__(self, answer: Callable[[], None]):
        self._answer = answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self._answer()
            for _ in range(UPDATES):
                yield {}


def fastvideo(folder: Path, steps: int, amd: dict[str, Any] | None) -> tuple[Cycle, Count]:
    """FastVideo's trainer with its stock method, or with ours and the options `amd`; it does not return."""
    import fastvideo.train.trainer
    import torch
    import yaml
    from fastvideo.train.entrypoint.train import run_training_from_config
    from fastvideo.train.models.base import ModelBase
    from toy_fastvideo import OURS as OURS_IN_FASTVIDEO
    from toy_fastvideo import STOCK as STOCK_IN_FASTVIDEO
    from toy_fastvideo import Log, Toy, settings

    made, count = networks(folder), Count()
    text = torch.randn(BATCH // GROUP, 8, made["student"].config.text_dim).repeat_interleave(GROUP, 0)
    answer, decode = answers(count), count.decoding(lambda latents: latents.transpose(1, 2))

    class Wan(Toy):  # type: ignore[misc]  # the host has no types
        """A role around diffusers' network. FastVideo's samples have frames before channels."""

        def __init__(self, **options: Any):
            super().__init__(**options)
            role = "fake_score" if self.name == "critic" else str(self.name)
            self.transformer = made[role].requires_grad_(options.get("trainable", True))
            count.watch(role, self.transformer)
            self.dataloader = Gate(answer)

        def prepare_batch(self, raw_batch: Any, *, generator: Any, latents_source: str = "data") -> Any:
            shape = (BATCH, FRAMES, 1, EDGE, EDGE)
            return SimpleNamespace(
                latents=torch.zeros(shape), timesteps=torch.zeros(1), attn_metadata=None, attn_metadata_vsa=None, infos=[],
                conditional_dict={"encoder_hidden_states": text}, unconditional_dict={"encoder_hidden_states": 0 * text},
                dmd_latent_vis_dict={},
            )  # fmt: skip

        def decode_latents(self, latents: Any) -> Any:
            return decode(latents)

        def predict_noise(self, noisy: Any, timestep: Any, batch: Any, *, conditional: bool, **others: Any) -> Any:
            condition = batch.conditional_dict if conditional else batch.unconditional_dict
            x, t = noisy.transpose(1, 2), timestep.flatten()[:1].expand(len(noisy))
            return self.transformer(x, t, condition["encoder_hidden_states"], return_dict=False)[0].transpose(1, 2)

    sys.modules["cycle_roles"] = SimpleNamespace(Wan=Wan)  # type: ignore[assignment]  # imported by name below
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(random.randint(20000, 60000)), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    fastvideo.train.trainer.build_tracker = lambda *args, **kwargs: Log()
    ModelBase.device = torch.device("cpu")
    rungs = [round(1000 * (1 - k / steps)) for k in range(steps)]
    method = STOCK_IN_FASTVIDEO if amd is None else OURS_IN_FASTVIDEO
    run = settings(
        folder / "fastvideo", method, amd, steps=10**6, generator_update_interval=UPDATES, batch=BATCH,
        dmd_denoising_steps=rungs, real_score_guidance_scale=3.0,
    )  # fmt: skip
    run["callbacks"] = {"grad_clip": {"max_grad_norm": 10.0}}
    for role in run["models"].values():
        role["_target_"] = "cycle_roles.Wan"
    path = folder / f"fastvideo-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(run))
    run_training_from_config(str(path))
    raise AssertionError("the trainer ended")


def answers(count: Count) -> Callable[[], None]:
    """A function that reports the time and counts since the last line on the standard input, and waits for the next."""
    start = [time.perf_counter()]

    def answer() -> None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = {"seconds": time.perf_counter() - start[0], "counts": count.take(), "peak": peak}
        print("ANSWER " + json.dumps(report), flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        start[0] = time.perf_counter()

    return answer


def work(arm: str, folder: Path, steps: int) -> None:
    """An arm's process: one cycle for each line on the standard input."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, amd = ADAPTED.get(arm, ("", None))
    if HOST_OF.get(arm) == "fastvideo":
        fastvideo(folder, steps, amd)
    cycle, count = modelopt(folder, steps, amd) if arm in HOST_OF else ours(folder, steps, *OURS[arm])
    answer = answers(count)
    while True:
        answer()
        cycle()


class Arm:
    """An arm's process.

    Args:
        name: the arm.
        folder: the pipeline.
        steps: steps of the student.

    Attributes:
        seconds: the time of each cycle.
        rows: rows by role and graph, summed over cycles, in units of the batch.
        peak: largest resident memory of the process, in MiB.
    """

    def __init__(self, name: str, folder: Path, steps: int):
        sys.path.insert(0, str(ROOT))
        from tests.helpers.hosts import environment

        env = os.environ | {"OMP_NUM_THREADS": "1"}
        code = ""
        if name in HOST_OF:
            env = environment(HOST_OF[name])  # type: ignore[no-untyped-call]  # tests have no types
            env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(ROOT / "tests" / "adapters" / "inside")])
            code = "import conftest; "  # declares the operators that FastVideo expects of torchvision
        arguments = ["cycle.py", "--steps", str(steps), "--arm", name, "--folder", str(folder)]
        code += f"import runpy, sys; sys.argv = {arguments!r}; runpy.run_path({__file__!r}, run_name='__main__')"
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.name, self.rows, self.peak = name, Counter[str](), 0.0
        self.seconds: list[float] = []
        self._answer()

    def cycle(self, *, count: bool) -> None:
        """Runs one cycle; `count` whether it counts."""
        assert self._process.stdin is not None
        self._process.stdin.write("cycle\n")
        self._process.stdin.flush()
        answer = self._answer()
        if count:
            self.seconds.append(answer["seconds"])
            self.rows.update({name: number / BATCH for name, number in answer["counts"].items() if name != "gathers"})
            self.rows["gathers"] += answer["counts"]["gathers"]
            self.peak = answer["peak"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        self._log.seek(0)
        raise SystemExit(f"{self.name} ended:\n{self._log.read()[-3000:]}")


def table(arms: list[Arm]) -> str:
    """The table of all arms, in Markdown."""
    roles = ("student no graph", "student graph", "fake_score no graph", "fake_score graph", "teacher no graph")
    heads = ["arm", *(role.replace("_", " ") for role in roles), "rows", "gathers", "decoded", "seconds", "memory, MiB"]
    rows = []
    for arm in arms:
        cycles = len(arm.seconds)
        of_role = [arm.rows[role] / cycles for role in roles]
        numbers = [*of_role, sum(of_role), arm.rows["gathers"] / cycles, arm.rows["decoded"] / cycles]
        cells = [f"{number:.1f}" for number in numbers]
        rows.append([arm.name, *cells, f"{statistics.median(arm.seconds):.2f}", f"{arm.peak:.0f}"])
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratios(arms: list[Arm]) -> str:
    """The time of our arms over each stock host's, as the median of each cycle's ratio; of an adapter's over its own host's."""
    lines = []
    for arm in arms:
        hosts = STOCK if arm.name in OURS else {name for name in STOCK if arm.name != name and HOST_OF[arm.name] == STOCK[name]}
        for host in (other for other in arms if other.name in hosts):
            ratio = statistics.median(a / b for a, b in zip(arm.seconds, host.seconds, strict=True))
            lines.append(f"{arm.name}: {ratio:.2f} x {host.name}'s time")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; with an arm's name, is that arm's process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=12, help="number of cycles that count, after one that does not")
    parser.add_argument("--steps", type=int, default=4, help="number of steps of the student")
    parser.add_argument("--arms", nargs="+", default=ALL, choices=ALL, metavar="ARM")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        work(given.arm, given.folder, given.steps)
    from amd_plugin.models.embedded.tiny import tiny_wan

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline: Any = tiny_wan(WORDS, width=192, depth=4, heads=4, patch_size=2)
        pipeline.save_pretrained(folder)
        (folder / "prompts.txt").write_text("a red fox\na blue boat\n")
        arms = [Arm(arm, folder, given.steps) for arm in given.arms]
        for cycle in range(given.cycles + 1):
            for arm in random.sample(arms, len(arms)):
                arm.cycle(count=cycle > 0)
        print(table(arms), ratios(arms), sep="\n\n")
        for arm in arms:
            arm.close()


if __name__ == "__main__":
    main()
