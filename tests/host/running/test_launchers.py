"""The same run in one process and under torchrun, through the command line; tests/sharding/test_launchers.py has the other launchers."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.launchers import LAUNCHERS
from tests.helpers.processes import ROOT, forked, run
from tests.helpers.recipes import TINY
from tests.helpers.tiny_wan import train_here

RECIPE = (
    "train",
    "modes2d",
    *(
        f"--set={s}"
        for s in (*TINY, "model.student_steps=2", "train.max_steps=3", "train.group_size=16", "distributed.device=cpu")
    ),
)


def launch(launcher, *arguments, cwd, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [str(part) for part in (*launcher, *RECIPE, *arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """The folder of the run in this process."""
    return train_here(["train", "modes2d", "--objective", "amd", *RECIPE[2:]], tmp_path_factory.mktemp("launchers") / "alone")


def test_two_processes_equal_one_on_the_joined_batch(in_one_process, tmp_path):
    together = launch(LAUNCHERS["torchrun"], "--output", "together", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    folders = (in_one_process, tmp_path / "together")
    assert together.stdout.count("report:") == 1
    for part in ("student", "fake_score"):
        one, two = (load_file(folder / "checkpoints" / "step-000003" / f"{part}.safetensors") for folder in folders)
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)
    one, two = ([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders)
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for key in ("loss/student", "objective/zone_share", "reward/classifier"):
        assert one[0][key] == pytest.approx(two[0][key], abs=1e-4)
    for key in ("objective/tilt_ratio", "objective/advantage_std", "objective/clip_share", "objective/zero_spread_share"):
        assert one[0][key] == pytest.approx(two[0][key], abs=1e-4), f"{key} is of the joined batch"


EACH_ON_ITS_OWN = """
import json, os, sys, torch
from pathlib import Path
from accelerate import Accelerator
from amd_plugin.host.running.accelerator import end
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe import load
from tests.helpers.recipes import TINY
accelerator, plugins, rank = Accelerator(cpu=True), get_plugin_manager(), int(os.environ["RANK"])
trainer = Trainer(load("modes2d", plugins, (*TINY, "objective.advantage_gradient=0.3")), plugins, accelerator)
trainer.cycle(), trainer.cycle()
sums = trainer.objective.state_dict()
Path(f"sums-{rank}.json").write_text(json.dumps([sums["coherence"], sums["gradient"]]))
log = RunLog(Path("metrics.jsonl"), 0, 1, accelerator, None)
log.add({"both": torch.tensor(1.0 + rank), "one": torch.tensor([torch.nan, 4.0][rank]), "none": torch.tensor(torch.nan)})
log.write(1)
accelerator.wait_for_everyone(), end(accelerator)
"""

IN_PARTS = """
import json, os, torch
from pathlib import Path
from accelerate import Accelerator
from amd_plugin.host.running.accelerator import end
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe import load
from tests.helpers.recipes import TINY
accelerator, plugins, rank = Accelerator(cpu=True), get_plugin_manager(), int(os.environ["RANK"])
trainer = Trainer(load("modes2d", plugins, (*TINY, "train.accumulation=4", "train.fake_updates=2"), "amd"), plugins, accelerator)
counts = {}
for name in ("student", "fake_score"):
    def counted(state, bucket, name=name):
        counts[name] = counts.get(name, 0) + 1
        return allreduce_hook(None, bucket)
    getattr(trainer, name).wrapped.register_comm_hook(None, counted)
trainer.cycle()
weights = torch.cat([parameter.detach().flatten() for parameter in trainer.student.parameters()])
Path(f"counts-{rank}.json").write_text(json.dumps([counts, weights.double().sum().item()]))
accelerator.wait_for_everyone(), end(accelerator)
"""

SOME_RUNGS_EACH = """
import json, os
from pathlib import Path
from accelerate import Accelerator
from amd_plugin.host.running.accelerator import end
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe import load
from tests.helpers.recipes import TINY
accelerator, plugins, rank = Accelerator(cpu=True), get_plugin_manager(), int(os.environ["RANK"])
trainer = Trainer(load("modes2d", plugins, (*TINY, "model.student_steps=4"), "amd"), plugins, accelerator)
log, names = RunLog(Path("metrics.jsonl"), 0, 1, accelerator, None), []
for _ in range(3):  # two groups in each process, and four rungs
    metrics = trainer.cycle()
    names.append(sorted(metrics))
    log.add(metrics)
log.write(3)
Path(f"names-{rank}.json").write_text(json.dumps(names))
accelerator.wait_for_everyone(), end(accelerator)
"""


def test_gradients_are_averaged_once_per_update_and_not_in_every_micro_batch(tmp_path):
    (tmp_path / "parts.py").write_text(IN_PARTS)
    code, printed = run([*forked(2), "parts.py"], tmp_path)
    assert code == 0, printed
    first, second = (json.loads((tmp_path / f"counts-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first[0] == {"student": 1, "fake_score": 2}


def test_processes_with_other_rungs_have_metrics_of_the_same_names(tmp_path):
    """Metrics are averaged over processes by their place in a sorted list: other names would be a hang, or others' numbers."""
    (tmp_path / "rungs.py").write_text(SOME_RUNGS_EACH)
    code, printed = run([*forked(2), "rungs.py"], tmp_path)
    assert code == 0, printed
    first, second = (json.loads((tmp_path / f"names-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and any("objective/zone_share/rung 0" in of_step for of_step in first)
    assert "objective/zone_share/rung 0" in json.loads((tmp_path / "metrics.jsonl").read_text())


def test_what_one_process_has_not_seen_is_not_lost(tmp_path):
    """Noise levels that only one process has samples at are logged; running sums over a process's own samples become all's."""
    (tmp_path / "each.py").write_text(EACH_ON_ITS_OWN)
    code, printed = run([*forked(2), "each.py"], tmp_path)
    assert code == 0, printed
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "both": 1.5, "one": 4.0}
    zero, one = (json.loads((tmp_path / f"sums-{rank}.json").read_text()) for rank in (0, 1))
    assert zero == one and torch.tensor(zero[0])[..., 1].sum() > 0 and min(zero[1]) > 0


REWARDS = """
import os, time, amd_plugin

def moody(on: str = "1"):
    def reward(media, prompts):
        if os.environ["RANK"] in on:
            raise RuntimeError("rank one had enough")
        return media[:, 0]
    return reward

def listing():
    return lambda media, prompts: [None if os.environ["RANK"] == "1" and i == 0 else float(x) for i, x in enumerate(media[:, 1])]

def hanging():
    return lambda media, prompts: time.sleep(600) if os.environ["RANK"] == "0" else media[:, 0]

def dreamy(slow: str):
    return lambda media, prompts: (time.sleep(0.5 if os.environ["RANK"] in slow else 0), media[:, 0])[1]

@amd_plugin.hookimpl
def distill_rewards():
    return {"moody": moody, "listing": listing, "hanging": hanging, "dreamy": dreamy}
"""


def launch_with_rewards(folder, rewards, *plugins):
    (folder / "ours.py").write_text(REWARDS)
    (folder / "command.py").write_text('from amd_plugin.__main__ import main\n\nif __name__ == "__main__":\n    main()\n')
    command = (*forked(2), folder / "command.py")
    loaded = ",".join(str(folder / name) for name in ("ours.py", *plugins))
    return launch(command, f"--set=rewards={rewards}", "--output", "run", cwd=folder, AMD_PLUGIN_LOAD=f"amd,{loaded}")


def test_a_reward_that_raises_on_one_rank_stops_all_of_them(tmp_path):
    done = launch_with_rewards(tmp_path, "[{name: moody}]")
    assert done.returncode == 1
    assert done.stderr.count("reward 'moody' failed: process 1: RuntimeError: rank one had enough") == 2, done.stderr
    assert done.stderr.count("saved run/checkpoints/step-000000") == 1
    assert done.stderr.count("process 0 saves run/checkpoints/step-000000, if it can") == 1
    assert (tmp_path / "run" / "checkpoints" / "step-000000-partial" / "manifest.json").is_file()


def test_a_worker_that_hangs_on_one_rank_stops_all_of_them(tmp_path):
    done = launch_with_rewards(tmp_path, "[{name: hanging, pool: 1, timeout: 5.0}]")
    assert done.returncode == 1
    assert done.stderr.count("reward 'hanging' failed: process 0: TimeoutError: no answer within 5 s") == 2, done.stderr


def test_rewards_that_fail_on_one_rank_are_neutral_there(tmp_path):
    done = launch_with_rewards(tmp_path, "[{name: moody, on_error: neutral, weight: 0.5}, {name: listing}]")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rank one had enough") == 1
    last = [line for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()) if "loss/student" in line][-1]
    assert last["reward_failed/moody"] == 0.5 and last["reward_failed/listing"] == 1 / 16
    assert last["objective/failed_rewards"] == 0.5


MOODY = """
import os, amd_plugin

def asked(hook):
    with open(f"{hook}-{os.environ['RANK']}", "a") as calls:
        calls.write("x")

@amd_plugin.hookimpl
def distill_strength_schedule():
    asked("strength")
    return 1 / 0 if os.environ["RANK"] == "1" else 0.0
"""


def test_a_schedule_that_fails_on_one_process_is_set_aside_on_all(tmp_path):
    (tmp_path / "moody.py").write_text(MOODY)
    done = launch_with_rewards(tmp_path, "[{name: listing}]", "moody.py")
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"strength-{rank}").read_text() for rank in (0, 1)] == ["x", "x"], "nobody is asked again"


def test_a_process_that_is_slower_than_the_other_changes_no_bit(tmp_path):
    """Whole runs after each other in one group of processes, whose start takes longer than they do."""
    (tmp_path / "ours.py").write_text(REWARDS)
    places = {slow: tmp_path / slow for slow in ("1", "0", "none")}
    command = ["train", "modes2d", "--objective", "amd", *RECIPE[2:]]
    runs = [
        ("adam", [*command, f"--set=rewards=[{{name: dreamy, slow: '{slow}'}}]"], str(place), None)
        for slow, place in places.items()
    ]
    script = ROOT / "tests" / "sharding" / "engine_runs.py"
    code, printed = run([*forked(2), script, json.dumps(runs)], tmp_path, AMD_PLUGIN_LOAD=f"amd,{tmp_path / 'ours.py'}")
    assert code == 0, printed
    students = [load_file(place / "checkpoints" / "step-000003" / "student.safetensors") for place in places.values()]
    assert all(torch.equal(value, other[name]) for other in students[1:] for name, value in students[0].items())


def test_bad_input_under_a_launcher_ends_all_processes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cat.jpg").write_text("")
    done = launch(LAUNCHERS["torchrun"], "--output", "run", cwd=tmp_path)
    assert done.returncode != 0 and "holds no run" in done.stderr
