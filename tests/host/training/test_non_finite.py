"""An update that is not finite is told with its place, dumped, repeated, left out, and never part of a checkpoint."""

import json
import threading

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

import amd_plugin
from amd_plugin import get_plugin_manager
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import checkpoint, run
from amd_plugin.host.evaluation.health import health, problems
from amd_plugin.host.running.replay import replay
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.non_finite import NonFinitePolicy
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.tasks import TASKS

NAN = float("nan")


class Brittle(amd_plugin.DMDObjective):
    """An objective whose losses are NaN in the third step, for one sample."""

    def student_loss(self, signals):
        output = super().student_loss(signals)
        if self.schedule_factor != 0.5:
            return output
        return output._replace(loss=output.loss + NAN * signals.x0[3].sum(), per_sample=output.per_sample + NAN)


class BrittleTwice(Brittle):
    """The same, in the turns of the fake score of that step too."""

    def fake_score_loss(self, prediction, target, weight=None):
        output = super().fake_score_loss(prediction, target, weight)
        return output if self.schedule_factor != 0.5 else output._replace(loss=output.loss * NAN)


class Locked(amd_plugin.DMDObjective):
    """An objective that cannot be copied."""

    def __init__(self, guidance_scale: float = 1.0):
        super().__init__(guidance_scale)
        self.lock = threading.Lock()


class BrittlePlugin:
    @amd_plugin.hookimpl
    def distill_objectives(self):
        return {"brittle": Brittle, "brittle_twice": BrittleTwice, "locked": Locked}

    @amd_plugin.hookimpl
    def distill_strength_schedule(self, step, max_steps, metrics):
        return 0.5 if step == 2 else 1.0


@pytest.fixture
def brittle():
    manager = get_plugin_manager()
    manager.register(BrittlePlugin())
    return manager


@pytest.fixture
def broken(monkeypatch):
    """``broken(field, times)``: in the turns whose numbers are `times`, sample 5 of a field of the signals is NaN."""

    def broken(field, times):
        original, turns = Forward.signals, []

        def signals(self, *arguments):
            made = original(self, *arguments)
            turns.append(1)
            if len(turns) in times:
                value = getattr(made, field).clone()
                value[5] = NAN
                made = made._replace(**{field: value})
            return made

        monkeypatch.setattr(Forward, "signals", signals)

    return broken


def test_an_objective_that_cannot_be_copied_is_refused_before_its_first_student_turn(tiny, brittle):
    with pytest.raises(InputError, match=r"objective: must be one that copy.deepcopy copies.* a Locked: TypeError: .*lock"):
        Trainer(tiny(objective="locked", manager=brittle), brittle, Accelerator(cpu=True))


def test_a_run_ends_with_the_place_and_the_replay_has_the_same_numbers(tiny, brittle, tmp_path, cli, monkeypatch):
    with pytest.raises(RunError, match=r"step 3, student update: .* first that is not: direction, of sample 3 .*'class \d'"):
        run.train(tiny(objective="brittle", manager=brittle), brittle, tmp_path / "run")
    (dump,) = (tmp_path / "run" / "nonfinite").iterdir()
    found = replay(dump, brittle)
    assert "the first that is not: direction, of sample 3" in found.sentence and found.parameters
    assert [stage.name for stage in found.stages] == ["sample", "teacher output", "fake score output", "direction", "loss"]
    assert all(stage.gap == 0 for stage in found.stages)
    assert all(torch.isfinite(v).all() for v in checkpoint.load(dump)[0]["student"].values())
    monkeypatch.setattr("amd_plugin.cli.get_plugin_manager", lambda: brittle)
    code, printed = cli("replay", dump)
    assert code == 0 and "direction: not finite in samples 3; as in the run, to the bit" in printed
    for part, name, changed in (
        ("computed", "loss", lambda value: value[:-1]), ("computed", "x0", lambda value: value[:1]),
        ("inputs", "labels", lambda value: value + 10**6), ("inputs", "sigma", lambda value: value[:-1]),
    ):  # fmt: skip
        file = dump / f"{part}.safetensors"
        whole, tensors = file.read_bytes(), load_file(file)
        save_file({**tensors, f".{name}": changed(tensors[f".{name}"]).contiguous()}, file)
        checkpoint.write_manifest(dump)
        code, printed = cli("replay", dump)
        assert code == 2 and "cannot be made again" in printed and "Use another dump" in printed, printed
        file.write_bytes(whole)
    state = json.loads((dump / "state.json").read_text())
    for part in ("computed", "inputs"):  # with a manifest that fits
        rest = {name: value for name, value in state["rest"].items() if name != part}
        (dump / "state.json").write_text(json.dumps({**state, "rest": rest}))
        checkpoint.write_manifest(dump)
        code, printed = cli("replay", dump)
        assert code == 2 and f"holds no {part}. Use an earlier one" in printed
    (dump / "state.json").write_text("{}")
    code, printed = cli("replay", dump)
    assert code == 2 and "Traceback" not in printed


def test_of_a_step_the_first_update_is_dumped_and_kept(tiny, brittle, tmp_path, caplog):
    settings = ("train.on_nonfinite=skip", "train.fake_updates=1")
    run.train(tiny(*settings, objective="brittle_twice", manager=brittle), brittle, tmp_path / "run")
    (dump,) = (tmp_path / "run" / "nonfinite").iterdir()
    assert replay(dump, brittle).role == "fake_score"
    assert f"{dump} has an earlier update of this step" in caplog.text


@pytest.mark.parametrize(("field", "stage"), [("real_cond", "teacher output"), ("fake", "fake score output")])
def test_what_is_first_is_named(field, stage, tiny, plugins, tmp_path, broken):
    broken(field, [1])
    with pytest.raises(RunError, match=f"first that is not: {stage}, of sample 5 "):
        run.train(tiny(objective="amd"), plugins, tmp_path / "run")


def test_a_control_character_in_a_prompt_is_shown_as_an_escape(tiny, plugins, tmp_path, broken, monkeypatch):
    broken("fake", [1])
    monkeypatch.setattr(TASKS["modes2d"], "prompts", lambda self, labels: ["\x1b[31mred\r"] * len(labels))
    with pytest.raises(RunError, match=r"prompt '\\x1b\[31mred\\r'"):
        run.train(tiny(objective="dmd"), plugins, tmp_path / "run")


def test_skipped_updates_are_counted_change_nothing_and_resume_exactly(tiny, plugins, tmp_path, broken, monkeypatch):
    broken("real_cond", [2])
    settings = ("train.on_nonfinite=skip", "train.checkpoint_every=1", "train.keep_checkpoints=9", "train.ema=0")
    run.train(tiny(*settings, objective="amd"), plugins, tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped/student") for line in lines[:4]] == [0, 1, 0, 0]
    one, two = (checkpoint.load(tmp_path / "one" / "checkpoints" / f"step-00000{step}")[0]["student"] for step in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = checkpoint.read_state(tmp_path / "one" / "checkpoints" / "step-000003")
    assert state["skipped"] == [1] and "NaN" not in json.dumps(state["objective"])
    for late in ("step-000003", "step-000004"):
        (tmp_path / "one" / "checkpoints" / late).rename(tmp_path / late)
    run.train(tiny(*settings, objective="amd"), plugins, tmp_path / "one", resume="auto")
    before, after = (checkpoint.load(p / "step-000004")[0]["student"] for p in (tmp_path, tmp_path / "one" / "checkpoints"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_many_skipped_updates_end_the_run(tiny, plugins, tmp_path, broken):
    broken("fake", [1, 2, 3, 4])
    with pytest.raises(RunError, match=r"3 were left out, more than train.max_skipped 2 within 1000 steps"):
        run.train(tiny("train.on_nonfinite=skip", "train.max_skipped=2", objective="dmd"), plugins, tmp_path / "run")
    assert len(list((tmp_path / "run" / "nonfinite").iterdir())) == 3


def test_old_skips_are_forgotten(tiny):
    policy = NonFinitePolicy(tiny().config.train)
    policy.load_state_dict([1, 5, 900])
    assert policy.state_dict() == [1, 5, 900] and policy.metrics(["student"]) == {}


def test_a_teacher_that_is_not_finite_is_told_at_once(tiny, plugins, tmp_path, monkeypatch):
    original = TASKS["modes2d"].training_data

    def with_nan(self, *arguments):
        x0, labels = original(self, *arguments)
        x0[7] = NAN
        return x0, labels

    monkeypatch.setattr(TASKS["modes2d"], "training_data", with_nan)
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"loss of update 1 is not finite; 1 of 256 samples of its data are not"):
        run.train(tiny(), plugins, tmp_path / "run")
    assert not list((tmp_path / "cache").glob("teacher-*/*"))


def test_collapse_and_saturation_name_the_setting():
    labels, draws = torch.arange(4).repeat(16), torch.Generator().manual_seed(0)
    honest = torch.rand(64, 3, 4, 4, generator=draws)
    flat = honest[labels] + 0.01 * honest
    burnt = (honest > 0.5).float()
    rows = [health(media, labels) for media in (honest, honest)]
    assert problems(rows, 3.0, ["objective.strength (now 0.5)"]) == []
    (collapse,) = problems([*rows, health(flat.clamp(0.01, 0.99), labels)], 3.0, ["objective.strength (now 0.5)"])
    assert collapse.startswith("collapse: ") and "train.student_lr" in collapse and "objective.strength" in collapse
    (saturation,) = problems([*rows, health(burnt, labels)], 3.0, [])
    assert "100% of all values are at black or white" in saturation and "objective.guidance_scale (now 3)" in saturation
