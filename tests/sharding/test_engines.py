"""Student and fake score trained as DeepSpeed engines are those of one process: real DeepSpeed, real processes, gloo."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import UMT5EncoderModel

from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.training.trainer import Trainer
from tests.helpers.launchers import assert_same
from tests.helpers.processes import ROOT, forked, run, torchrun
from tests.helpers.tiny_wan import train_here
from tests.sharding.engine_checks import SETTINGS
from tests.sharding.engine_runs import train_all

# Several runs are made for all tests at once.
pytestmark = pytest.mark.timeout(600)

HERE = ROOT / "tests" / "sharding"
# Adam divides by the root of the squared gradient, so where a gradient is nearly zero another order of summation moves
# a weight by a share of the learning rate, here 1e-3. The runs with SGD hold what is summed to 1e-6.
ADAM = 5e-5
ROLES = ("student", "fake_score", "ema")
ALL = (*ROLES, "optimizer_student", "optimizer_fake_score")
STAGES = {
    "zero2": ["--set=distributed.trained=zero2"],
    "zero3": ["--set=distributed.trained=zero3", "--set=distributed.teacher=zero3"],
}
# What each run adds to the tiny one, and its optimizer. Gradients are clipped in all of them.
KINDS = {
    "sgd": ("sgd", ["train.student_lr=0.1", "train.fake_lr=0.1", "train.clip_norm=0.1", "train.accumulation=2"]),
    "lora": ("adam", ["model.student=lora", "model.fake_score=lora", "train.clip_norm=0.01"]),
    "mixed": ("sgd", ["train.student_lr=0.1", "train.fake_lr=0.1", "train.clip_norm=0.1", "model.dtype=bf16",
                      "distributed.mixed_precision=bf16"]),
    "guided": ("adam", ["objective.advantage_guidance=auto", "rewards=[{name: hackable}]"]),
}  # fmt: skip


def together(count, runs, cwd):
    code, printed = run([*forked(count), HERE / "engine_runs.py", json.dumps(runs)], cwd, timeout=500)
    assert code == 0, printed


def twin(arguments):
    """Of the recipe for 14B, in full: its own objective, and a reward that needs no model."""
    more = ("model.roles=separate", "rewards=[{name: hackable}]", "distributed.teacher=none")
    return ["train", "wan21_14b_zero3", "--objective", "amd", *arguments[4:], *(f"--set={setting}" for setting in more)]


@pytest.fixture(scope="module")
def runs(wan, tmp_path_factory):
    """Folders of runs in two processes, and in one by the same names with ``-alone``."""
    folder = tmp_path_factory.mktemp("engines")
    kinds = {kind: (how, [*wan, *(f"--set={setting}" for setting in more)]) for kind, (how, more) in KINDS.items()}
    kinds["guided"][1][3] = "amd"  # the objective's name
    shared = [(how, [*arguments, *STAGES[stage]], str(folder / f"{kind}-{stage}"), None)
              for kind, (how, arguments) in kinds.items() for stage in STAGES]  # fmt: skip
    kinds["twin"] = ("adam", twin(wan))
    shared.append(("adam", [*twin(wan), *STAGES["zero3"]], str(folder / "twin"), None))
    together(2, shared, folder)
    train_all([(how, arguments, folder / f"{kind}-alone", None) for kind, (how, arguments) in kinds.items()])
    return folder


def tensors(run, part, step=3):
    return load_file(run / "checkpoints" / f"step-{step:06d}" / f"{part}.safetensors")


def moved(run, part):
    first, last = tensors(run, part, 1), tensors(run, part)
    return max((first[name] - last[name]).abs().max().item() for name in first)


def norms(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[f"grad_norm/{role}"] for row in rows if "grad_norm/student" in row for role in ("student", "fake_score")]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_are_one_on_the_joined_batch(stage, runs):
    assert_same(runs / "sgd-alone", runs / f"sgd-{stage}", ROLES, 1e-6)
    assert min(moved(runs / "sgd-alone", part) for part in ROLES[:2]) > 1e-3
    assert norms(runs / f"sgd-{stage}") == pytest.approx(norms(runs / "sgd-alone"), rel=1e-4)
    assert min(norms(runs / "sgd-alone")) > 0.1  # so that clipping was at work


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_of_networks_that_are_shared_out(stage, runs):
    assert_same(runs / "lora-alone", runs / f"lora-{stage}", ALL, ADAM)
    one, two = (
        load_file(runs / run / "student" / "lora" / "pytorch_lora_weights.safetensors")
        for run in ("lora-alone", f"lora-{stage}")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=ADAM)


@pytest.mark.parametrize("stage", STAGES)
def test_tables_of_rungs_and_outcomes_have_their_own_learning_rate(stage, runs):
    """Two parameter groups: each process holds a share of both, and of Adam's moments."""
    assert_same(runs / "guided-alone", runs / f"guided-{stage}", ALL, ADAM)
    tables = {name: value for name, value in tensors(runs / f"guided-{stage}", "fake_score").items() if ".table" in name}
    assert {name.strip(".").partition(".")[0] for name in tables} == {"rungs", "outcomes"} and all(
        value.any() for value in tables.values()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_in_bf16_what_is_kept_is_fp32(stage, runs):
    assert_same(runs / "mixed-alone", runs / f"mixed-{stage}", ROLES, 1e-4)
    assert min(moved(runs / f"mixed-{stage}", part) for part in ROLES[:2]) > 1e-3
    kept = tensors(runs / f"mixed-{stage}", "student")
    assert any((value.bfloat16().float() != value).any() for value in kept.values())
    assert all(value.dtype == torch.float32 for value in kept.values())


def test_the_twin_of_the_recipe_for_14b(runs):
    assert_same(runs / "twin-alone", runs / "twin", ALL, ADAM)
    one, two = (json.loads((runs / run / "evaluation.json").read_text()) for run in ("twin-alone", "twin"))
    assert one == pytest.approx(two, rel=1e-3)
    one, two = (
        load_file(next((runs / run / "student" / "transformer").glob("*.safetensors"))) for run in ("twin-alone", "twin")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=ADAM)


@pytest.fixture(scope="module")
def resumed(wan, runs, tmp_path_factory):
    """Folders of runs in two fresh processes that go on from the first step of others."""
    folder, mixed = tmp_path_factory.mktemp("resumed"), [*wan, *(f"--set={setting}" for setting in KINDS["mixed"][1])]
    together(2, [
        (how, arguments, str(folder / name), str(runs / name / "checkpoints" / "step-000001"))
        for name, how, arguments in (
            ("twin", "adam", [*twin(wan), *STAGES["zero3"]]), ("mixed-zero2", "sgd", [*mixed, *STAGES["zero2"]]),
            ("twin-alone", "adam", [*twin(wan), *STAGES["zero2"]]),
        )
    ], folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("name", ["twin", "mixed-zero2"])
def test_resumed_in_fresh_processes_it_is_the_same_to_the_bit(name, runs, resumed):
    assert_same(runs / name, resumed / name, ALL, tolerance=0)


def test_one_process_goes_on_as_two(runs, resumed):
    assert_same(runs / "twin", resumed / "twin-alone", ALL, ADAM)


def test_two_processes_go_on_as_one(wan, runs, tmp_path):
    train_here(twin(wan), tmp_path / "run", str(runs / "twin" / "checkpoints" / "step-000001"))
    assert_same(runs / "twin", tmp_path / "run", ALL, ADAM)


def test_killed_while_all_save_it_ends_and_goes_on_from_the_checkpoint_before(wan, alone, tmp_path):
    arguments = [*wan, *STAGES["zero3"], "--output", "run"]
    code, printed = run(
        [*torchrun(2), ROOT / "tests" / "helpers" / "failing.py", *arguments], tmp_path, HOW="dies while all save", BAD="1"
    )
    assert code != 0
    said = " ".join(printed.split())
    assert "no answer from process 1 of 0 to 1" in said
    assert "a resumed run goes on from the newest checkpoint" in said
    saved = checkpoint.available(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["step-000001"]
    train_here(wan, tmp_path / "run", "auto")
    assert_same(alone, tmp_path / "run", ALL, ADAM)


@pytest.fixture(scope="module")
def ranks(pipeline_folder, tmp_path_factory):
    """What each of three processes saw, a text encoder's folder, and where the students they trained are."""
    out, encoder = tmp_path_factory.mktemp("ranks"), pipeline_folder("wan") / "text_encoder"
    code, printed = run([*forked(3), HERE / "engine_checks.py", encoder, out], out)
    assert code == 0, printed
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(3)], encoder, out


@pytest.mark.parametrize("stage", STAGES)
def test_every_process_keeps_its_share(stage, ranks):
    for rank in (seen[stage] for seen in ranks[0]):
        padding = 17 * 3  # parameters, or one partition
        assert rank["masters"] <= rank["whole"] / 3 + padding
        if stage == "zero3":
            for name, (shape, mine) in rank["elements"].items():
                assert mine == math.ceil(math.prod(shape) / 3), name
            assert len(rank["elements"]) == 17
            for moment, held in rank["held"].items():
                assert held <= rank["whole"] / 3 + padding, moment


@pytest.mark.parametrize("stage", STAGES)
def test_three_processes_are_one(stage, ranks, tiny, plugins):
    trainer = Trainer(tiny(*SETTINGS, objective="dmd"), plugins, Accelerator(cpu=True))
    trainer.cycle()
    trainer.cycle()
    for rank in range(3):
        trained = load_file(ranks[2] / f"{stage}-{rank}.safetensors")
        for name, value in trainer.student.state_dict().items():
            torch.testing.assert_close(trained[name], value, rtol=1e-5, atol=ADAM)


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_plays_and_leaves(stage, ranks):
    for rank in (seen[stage] for seen in ranks[0]):
        assert rank["average applied"] == 0 == rank["given back"] < rank["average differs"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_is_applied_by_none(stage, ranks):
    for rank in (seen[stage] for seen in ranks[0]):
        assert len(rank["not finite"]) >= 2
        for finite, gap in rank["not finite"]:
            assert not finite and gap == 0


def test_a_text_encoder_loaded_meanwhile_is_whole(ranks):
    seen, folder, _ = ranks
    expected = sum(p.numel() for p in UMT5EncoderModel.from_pretrained(folder).parameters())
    assert all(rank["text encoder"] == expected for rank in seen)


@pytest.mark.parametrize(("settings", "said"), [
    (["model.roles=shared_base"], "distributed.trained: an engine needs a network of its own"),
    (["train.compile=true"], "train.compile: .*set distributed.trained to none"),
    (["objective.name=dmd2"], "distributed.trained: objective 'dmd2' reads the fake score's features"),
])  # fmt: skip
def test_what_engines_cannot_do_is_said(settings, said, tiny):
    with pytest.raises(InputError, match=said):
        tiny("distributed.trained=zero2", *settings)
