"""Plans against hand arithmetic, against real runs, and against laws that any plan must obey."""

import itertools
import json

import pytest
import torch

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.config import ModelConfig
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import Needs
from amd_plugin.maths.adversarial import Adversarial
from amd_plugin.models import shipped_configs
from amd_plugin.models.pretrained import Pretrained
from amd_plugin.plan import calls, measured, memory, model_spec, plan, plan_with_changes, traffic
from amd_plugin.plan.memory import RESERVED
from amd_plugin.plan.show import show
from amd_plugin.plan.trace import Trace, along
from amd_plugin.tasks import TASKS
from tests.helpers.documentation import ROOT, script

GPU = 80_000_000_000
# Parameters in diffusers' and transformers' classes, as published checkpoints have them.
PARAMETERS = {
    "sdxl": (2_567_463_684, {"text_encoder": 123_060_480, "text_encoder_2": 694_659_840}, 83_653_863),
    "wan21_1_3b": (1_418_996_800, {"text_encoder": 5_680_910_336}, 126_892_531),
    "wan21_14b": (14_288_491_584, {"text_encoder": 5_680_910_336}, 126_892_531),
}
# By hand no tables of the fake score are counted; `tests/models/test_step_conditioning.py` counts those.
UNTOLD = "model.rung_conditioning=false"
FRESH = "train.rollouts=fresh"
FULL = ("model.roles=separate", "distributed.trained=zero3", UNTOLD, FRESH)
SMALL = ("train.trackers=[]", "train.batch_size=16", "train.group_size=4")


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def manager():
    return get_plugin_manager()


@pytest.fixture(scope="module")
def big(manager):
    """Plans of the 14B recipe in full; the tracing is shared."""
    return lambda gpus, *overrides: plan(recipe.load("wan21_14b_zero3", manager, (*FULL, *overrides)), manager, gpus, GPU)


def small(manager, name, *overrides, gpus=1):
    return plan(recipe.load(name, manager, (*SMALL, *overrides)), manager, gpus, GPU)


def spec_of(manager, model, task="prompts", **options):
    if task == "prompts":
        options = {"source": str(ROOT / "recipes" / "prompts" / "videos.txt")}
    return model_spec.model_spec(model, TASKS[task](**options), 0, manager.families())


@pytest.mark.parametrize("name", PARAMETERS)
def test_shipped_configs_are_those_of_the_public_models(manager, name):
    hub_id = {folder: hub for hub, folder in shipped_configs.PIPELINES.items()}[name]
    found = spec_of(manager, ModelConfig(path=hub_id, dtype="bf16"))
    network, encoders, vae = PARAMETERS[name]
    assert sum(p.numel() for p in found.build(torch.bfloat16).parameters()) == network
    assert found.encoders == encoders
    assert sum(p.numel() for p in model_spec.build_autoencoder(found).parameters()) == vae
    assert "come with amd-plugin" in found.source and "HF_HUB_OFFLINE" in found.source


def test_reward_models_by_name(tmp_path):
    assert model_spec.clip_parameters("yuvalkirstain/PickScore_v1") == 986_109_441
    assert model_spec.clip_parameters("openai/clip-vit-large-patch14") == 427_616_513
    assert model_spec.clip_parameters(str(tmp_path)) is None


def test_weights_are_as_wide_as_loading_makes_them(manager, pipeline_folder):
    """Wan's class keeps some of its layers in fp32 whatever is asked for."""
    folder = pipeline_folder("wan")
    model = ModelConfig(path=str(folder), dtype="bf16", pixels=(16, 16), frames=5)
    found = spec_of(manager, model)
    loaded = Pretrained(str(folder)).network(found.family, torch.bfloat16)
    built = found.build(torch.bfloat16)
    assert {n: p.dtype for n, p in built.named_parameters()} == {n: p.dtype for n, p in loaded.named_parameters()}
    assert len({p.dtype for p in loaded.parameters()}) == 2


def test_14b_by_hand(big):
    found, n = big(64), 14_288_491_584
    student, fake, teacher = (found.rows[role] for role in ("student", "fake_score", "teacher"))
    # bf16 weights and gradients, fp32 masters and two moments, an fp32 average; each shared by 64, rounded up.
    assert (student.weights, student.gradients) == (446_515_362, 446_515_362) == (n // 32, n // 32)
    assert student.optimizer == 2_679_092_172 == 12 * n // 64
    assert (student.average, fake.average) == (893_030_724, 0) == (4 * n // 64, 0)
    assert (fake.weights, fake.gradients, fake.optimizer) == (student.weights, student.gradients, student.optimizer)
    # The teacher in bf16, except time embedding, norms and tables (29,184,000 parameters), which stay fp32.
    assert teacher.weights == -(-(2 * n + 2 * 29_184_000) // 64)
    # Gathered at a time: five times the largest tensor, the time projection's 6 x 5120 x 5120; and the reduction's bucket.
    assert found.rows["student"].buffers == 5 * 6 * 5120 * 5120 * 2 + 100_000_000 * 2
    assert found.rows["autoencoder"].weights == 4 * 126_892_531
    assert found.rows["rewards"].weights == 2 * 986_109_441
    # Noise of the joined batch of 64 latents of 16 x 21 x 60 x 104, twice, in fp32; and a sample with the input that gave it.
    assert found.rows["batch"].buffers == (2 * 64 + 2) * 16 * 21 * 60 * 104 * 4


def test_rewards_count_where_they_are(manager):
    def planned(*overrides):
        return plan(recipe.load("sdxl_4step", manager, overrides), manager, 1, 80 * 10**9)

    pickscore, large = 986_109_441, 427_616_513
    assert planned().rows["rewards"].weights == 4 * pickscore
    assert planned("rewards.0.device=cpu").rows["rewards"].weights == 0
    assert planned("rewards.0.pool=2").rows["rewards"].weights == 2 * 4 * pickscore
    judged = planned("evaluate.rewards=[{name: clip, path: openai/clip-vit-large-patch14}]")
    assert judged.rows["rewards"].weights == 4 * (pickscore + large)
    unknown = planned("evaluate.rewards=[{name: image_reward}]")
    assert "the weights of reward image_reward" in unknown.notes


def test_14b_operations_by_hand(manager):
    loaded = recipe.load("wan21_14b_zero3", manager, FULL)
    made = calls.traces(spec_of(manager, loaded.config.model), loaded.config, 1, True)
    tokens, text, width, wide, blocks = 21 * 30 * 52, 512, 5120, 13824, 40
    linear = 2 * tokens * (6 * width**2 + 2 * width * wide) + 2 * text * 2 * width**2
    attention = 4 * tokens**2 * width + 4 * tokens * text * width
    assert made["rollout"].flops_forward == pytest.approx(blocks * (linear + attention), rel=0.005)
    assert made["teacher"].flops_forward == pytest.approx(2 * made["rollout"].flops_forward, rel=1e-3)
    # A block's input is kept in bf16 for each of 40, and little else, when the rest is recomputed.
    assert made["student"].held == pytest.approx(blocks * tokens * width * 2, rel=0.2)


def test_14b_traffic_by_hand(manager, big):
    found, n = big(64), 14_288_491_584
    part = 63 / 64
    # Per cycle the student makes 5 rollouts of 2.5 calls on average and, in its own turn, 1.5 more without gradient: 14 gathers.
    # With gradient it is gathered forward, for recomputation and backward: 3; and its gradients are scattered once.
    assert found.received["student"] == pytest.approx(part * 2 * n * (14 + 3 + 1))
    assert found.received["fake_score"] == pytest.approx(part * 2 * n * (5 * 4 + 1))
    # With and without prompt in one call: one gather.
    assert found.received["teacher"] == pytest.approx(part * (2 * n + 2 * 29_184_000))
    assert found.seconds["network"] == pytest.approx(sum(found.received.values()) / 450e9)


def test_1_3b_by_hand(manager):
    found, n = plan(recipe.load("wan21_1_3b_4step", manager, ["train.accumulation=8", UNTOLD]), manager, 8, GPU), 1_418_996_800
    student = found.rows["student"]
    # fp32 weights, gradients and the reducer's buckets; two moments and a counter for each of 825 tensors; the average.
    assert (student.weights, student.gradients, student.buffers, student.average) == (4 * n,) * 4
    assert student.optimizer == 8 * n + 4 * 825
    assert found.rows["fake_score"].optimizer == student.optimizer and found.rows["fake_score"].average == 0
    assert found.rows["teacher"].weights == 2 * n + 2 * 3_127_296
    lasting = 2 * (4 + 8 + 4) * n + 4 * n + 2 * n
    assert sum(row.lasting for row in found.rows.values()) == pytest.approx(lasting + 507570124 + 3944437764, rel=0.03)


def test_a_shared_base_is_gathered_for_whoever_calls(manager):
    found, base = (
        plan(recipe.load("wan21_14b_zero3", manager, [UNTOLD, FRESH]), manager, 64, GPU),
        2 * 14_288_491_584 + 2 * 29_184_000,
    )
    assert found.rows["teacher"].weights == -(-base // 64)
    # Without an all-gather for each call: twice the adapters' gradients. See above for the numbers of calls.
    adapters = 2 * 63 / 64 * found.rows["student"].gradients
    assert found.received["student"] == pytest.approx(63 / 64 * base * (14 + 3) + adapters)
    assert found.received["fake_score"] == pytest.approx(63 / 64 * base * (1 + 3 * 5) + 5 * adapters)


def test_the_headers_of_recipes_say_what_the_planner_says(manager):
    headers = script("docs/plan_headers.py")
    for name in ("sdxl_4step", "wan21_1_3b_4step", "wan21_14b_zero3"):
        text = (ROOT / "recipes" / f"{name}.yaml").read_text()
        assert headers.PLANNED.search(text) and headers.planned(text, name, manager) == text, "run make docs"


def test_what_ships_is_what_measuring_gives(manager, monkeypatch):
    """The numbers that come with the package are those of the networks, and keys find them for all shipped recipes."""
    plans = [("sdxl_4step", 1, ()), ("wan21_1_3b_4step", 8, ("train.accumulation=8",)), ("wan21_14b_zero3", 64, ())]
    monkeypatch.setattr(measured, "known", {})
    monkeypatch.setattr(measured, "_kept", lambda key, measure: pytest.fail("not shipped: run benchmarks/plan_traces.py"))
    for name, gpus, overrides in plans:
        plan(recipe.load(name, manager, overrides), manager, gpus, GPU)
    used, again = dict(measured.known), {}
    monkeypatch.setattr(measured, "known", again)
    monkeypatch.setattr(measured, "shipped", dict)
    monkeypatch.setattr(measured, "_kept", lambda key, measure: measure())
    name, gpus, overrides = plans[1]  # the quickest to trace, with adapters' and tables' code in the other tests
    plan(recipe.load(name, manager, overrides), manager, gpus, GPU)
    assert len(again) == 2 and json.loads(json.dumps(again)) == {key: used[key] for key in again}


def test_what_was_measured_is_kept_for_the_next_command(manager, monkeypatch, tmp_path):
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path))
    made = []
    for _ in range(2):
        monkeypatch.setattr(measured, "known", {})
        numbers = measured.measured("traces", {"batch": 1}, lambda: made.append(1) or {"student": [1, 2]}, keep=True)
        assert numbers == {"student": [1, 2]} and made == [1]
    measured.measured("traces", {"batch": 2}, lambda: made.append(1) or {"student": [1, 2]}, keep=False)
    assert made == [1, 1] and len(list(tmp_path.glob("plan-*/numbers.json"))) == 1


def test_more_gpus_never_need_more_each(big):
    peaks = [big(gpus, f"train.accumulation={64 // gpus}") for gpus in (1, 2, 4, 8, 16, 32, 64)]
    for fewer, more in itertools.pairwise(peaks):
        for name in fewer.rows:
            assert more.rows[name].lasting <= fewer.rows[name].lasting
        assert more.peak <= fewer.peak


@pytest.mark.parametrize("name", ["moving_digits", "digits_sdxl"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_recomputing_never_needs_more(manager, name, precision):
    mixed = f"distributed.mixed_precision='{precision}'"
    kept, recomputed = (small(manager, name, mixed, f"train.gradient_checkpointing={flag}") for flag in ("false", "true"))
    for role in ("student", "fake_score"):
        assert 0 < recomputed.rows[role].activations <= kept.rows[role].activations
    assert recomputed.flops["fake_score"] > kept.flops["fake_score"]


def test_sharding_moves_bytes_but_not_operations(manager):
    whole = small(manager, "moving_digits", gpus=4)
    for sharded in (
        small(manager, "moving_digits", "distributed.trained=zero2", gpus=4),
        small(manager, "moving_digits", "distributed.trained=zero3", "distributed.teacher=zero3", gpus=4),
    ):
        assert sharded.rows["student"].optimizer < whole.rows["student"].optimizer
        assert sharded.flops == whole.flops
    assert sharded.rows["teacher"].weights == -(-whole.rows["teacher"].weights // 4)
    assert small(manager, "moving_digits", "distributed.teacher=zero3_offload", gpus=4).rows["teacher"].weights == 0
    assert small(manager, "moving_digits").received == {"student": 0, "fake_score": 0, "teacher": 0}


def test_one_copy_for_all_roles(manager):
    adapters = ("model.roles=shared_base", "model.lora={rank: 4, target_modules: [to_q, to_v]}", UNTOLD)
    shared, apart = small(manager, "moving_digits", *adapters), small(manager, "moving_digits")
    assert shared.rows["teacher"].weights == apart.rows["teacher"].weights
    assert 0 < shared.rows["student"].weights == shared.rows["fake_score"].weights < apart.rows["student"].weights / 10
    assert shared.rows["student"].optimizer < apart.rows["student"].optimizer / 10


def test_blocks_on_a_line_are_what_all_of_them_cost(manager):
    """Eight blocks as read off three, four and five, and as traced."""
    loaded = recipe.load("moving_digits", manager, (*SMALL, "model.depth=8", "train.gradient_checkpointing=true"))
    config = loaded.config
    found = spec_of(manager, config.model, "moving_digits")
    measure = lambda depth: calls.network_traces(found, config, 2, True, depth)  # noqa: E731
    assert along(measure, 8) == measure(8)


def test_what_is_on_no_line_is_traced_whole():
    bent = lambda parts: {"call": Trace(0, parts**2, 0, 0, 0)}  # noqa: E731
    assert along(bent, 40) == {"call": Trace(0, 1600, 0, 0, 0)}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("moving_digits", ["train.gradient_checkpointing=true"]),
        ("digits_sdxl", ["train.gradient_checkpointing=false", "train.accumulation=2"]),
        ("modes2d", []),
        ("moving_digits", ["model.roles=shared_base", "model.lora={rank: 4, target_modules: [to_q, to_v]}"]),
    ],
)
def test_predicted_is_what_a_real_run_holds(manager, name, more):
    benchmark = script("benchmarks/plan_against_measured.py")
    loaded = recipe.load(name, manager, (*benchmark.SMALL, "train.group_size=4", *more), "dmd")
    found = benchmark.compare(loaded, manager)
    predicted, measured = found.pop("student.activations")
    assert {what: pair[0] for what, pair in found.items()} == {what: pair[1] for what, pair in found.items()}
    assert len(found) == 8
    # The states of the random generator that checkpointing keeps, 5 kB a block, are not counted.
    assert 0.96 * measured <= predicted <= measured * 1.001


def test_changes_are_planned_like_the_recipe(manager):
    loads = []

    def load(more):
        loads.append(list(more))
        return recipe.load("wan21_14b_zero3", manager, (*FULL, "train.accumulation=8", *more))

    found = plan_with_changes(load, manager, 8, GPU)
    assert not found.fits and found.changes and loads[0] == []
    peaks = [found.peak, *(peak for _, peak in found.changes)]
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] <= GPU
    taken = [part.removeprefix("--set ") for change, _ in found.changes for part in change.split(" --set ") if "=" in part]
    if "--gpus" not in found.changes[-1][0]:
        again = plan(load(taken), manager, 8, GPU)
        assert again.peak == peaks[-1]


def test_calls_of_a_cycle(manager):
    config = recipe.load("wan21_14b_zero3", manager, ["train.accumulation=2", "train.rollouts=fresh"]).config
    # Two parts: the student's turn scores first, and repeats its last call with gradient.
    assert traffic.calls_of(config, Needs(reward=True)) == traffic.Calls(
        rollout=2 * (5 * 2.5 + 1.5 + 1), student=2, fake_score=10, score=2, teacher=2, decode=12
    )


@pytest.mark.parametrize("sets", [1, 2])
def test_calls_and_samples_of_a_cycle_that_harvests(manager, sets):
    settings = ["train.accumulation=2", "train.rollouts=harvest", f"train.rollout_sets={sets}"]
    config = recipe.load("wan21_14b_zero3", manager, settings).config
    assert traffic.calls_of(config, Needs(reward=True)) == traffic.Calls(
        rollout=2 * 4 * sets, student=2, fake_score=10, score=2, teacher=2, decode=2 * min(4 * sets, 6)
    )
    assert memory.kept_samples(config, sample=10, rows=8) == 8 * 10 * (4 * sets + 2)


GAN = Adversarial(1.0, 0.0, 0.01)
R1 = Adversarial(1.0, 1.0, 0.01)


@pytest.mark.parametrize(
    ("needs", "most"),
    [
        (Needs(), 180),  # the student's own backward pass
        (Needs(reward=True, reward_gradient=True), 100 + 300),  # the decoder's, on the student's graph
        (Needs(discriminator=GAN), 100 + 90),
        (Needs(student_prediction=True), 100 + 180),
        (Needs(student_prediction=True, discriminator=GAN), 100 + 100 + 90),
    ],
    ids=str,
)
def test_graphs_that_a_loss_keeps_at_a_time_are_all_counted(manager, needs, most):
    names = {"student": (100, 150, 180), "fake_score": (60, 80, 90), "decode with gradient": (200, 250, 300)}
    names |= {name: (0, 20, 0) for name in ("rollout", "score", "teacher", "decode")}
    made = {name: Trace(*memory_of, 0, 0) for name, memory_of in names.items()}
    config = recipe.load("modes2d", manager).config
    assert memory.turns(made, config, needs, media=1, rows=4)["student"] == most


def test_calls_that_few_objectives_need(manager):
    config = recipe.load("wan21_14b_zero3", manager, [FRESH]).config
    plain = traffic.calls_of(config, Needs())
    updates, steps = config.train.fake_updates, config.model.student_steps
    for needs, more in (
        (Needs(reward=True, reward_gradient=True), {"decode": updates + 1, "decode_with_gradient": 1}),
        (Needs(discriminator=GAN), {"score": 2 * updates + 1}),
        (Needs(discriminator=R1), {"score": 3 * updates + 1}),
        (Needs(student_prediction=True), {"student": 1}),
        (Needs(transition_density=True), {"student": (steps - 1) / steps, "rollout": (steps - 1) / 2}),
        (Needs(teacher_path=(3, 25)), {"teacher": 3 / steps}),
    ):
        found = traffic.calls_of(config, needs)
        differ = {name: getattr(found, name) - getattr(plain, name) for name in vars(found)}
        assert {name: by for name, by in differ.items() if by} == more


def test_a_decoder_that_a_reward_is_followed_through_is_traced_with_its_backward_pass(manager):
    followed, plain = (small(manager, "digits_sdxl", f"objective.reward_gradient={weight}") for weight in (0.1, 0.0))
    config = recipe.load("digits_sdxl", manager, SMALL).config
    decoder = calls.decode_with_gradient(spec_of(manager, config.model, "digits"), 16)
    assert decoder.flops_backward == decoder.flops_forward > 0 and decoder.peak > 0
    assert followed.flops["autoencoder"] - plain.flops["autoencoder"] == decoder.flops_forward + decoder.flops_backward
    assert any("graphs that their gradients need" in note for note in followed.notes)


def test_a_full_memory_of_failures_is_counted(manager):
    config = recipe.load("modes2d", manager, ["model.student_steps=4"]).config
    assert memory.failures(config, sample=8) == 4 * 384 * 8
    assert memory.failures(config, sample=2**20) == 4 * 2**28
    assert memory.failures(config, sample=2**30) == 4 * 2**30, "one sample at least"


def test_a_plan_that_leaves_something_out_does_not_say_that_the_run_fits(manager):
    whole, part = (plan(recipe.load("modes2d", manager, SMALL, name), manager, 1, GPU) for name in ("dmd", "dmd2"))
    assert not whole.notes and "\nfits: needs" in show(whole)[-1]
    assert part.notes and "\nwhat is counted fits: needs" in show(part)[-1]
    assert "the real samples and their encoding" in part.notes


@pytest.mark.parametrize("gpus", [0, -1, 3, 128])
def test_gpus_that_cannot_share_the_batch(manager, gpus):
    with pytest.raises(InputError, match=r"--gpus: .* must share out evenly"):
        small(manager, "modes2d", gpus=gpus)


def test_the_command(cli):
    code, printed = cli("plan", "moving_digits", "--gpus", 4, "--json")
    answer, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    cycle, run = answer["cycle"]["seconds"], answer["run"]
    assert "tracing the networks" in printed
    assert run["hours"]["overlapped"] == pytest.approx(run["updates"] * cycle["overlapped"] / 3600)
    assert run["gpu_hours"]["overlapped"] == pytest.approx(4 * run["hours"]["overlapped"])
    assert code == 0 and answer["fits"] and answer["gpus"] == 4
    assert answer["peak"] == max(answer["phases"].values()) + RESERVED
    assert set(answer["rows"]["student"]) == {"weights", "gradients", "optimizer", "average", "buffers", "activations"}
    code, printed = cli("plan", "moving_digits", "--gpus", 1, "--gpu-memory", 4.001)
    assert code == 0 and "does not fit" in printed and "changes, in order" in printed
    assert "on 1 GPU of" in printed and "if traffic" not in printed, "one GPU has none"
    for wrong in (
        ["nothing", "--gpus", 1], ["modes2d", "--gpus", 0], ["modes2d", "--gpus", 7], ["modes2d", "--gpus", "some"],
        ["modes2d", "--gpus", 1, "--gpu-memory", 0], ["modes2d", "--gpus", 1, "--gpu-memory", 2],
        ["modes2d", "--gpus", 1, "--tflops", "nan"], ["modes2d", "--gpus", 1, "--set", "train.nothing=1"],
    ):  # fmt: skip
        code, printed = cli("plan", *wrong)
        assert code == 2 and "Traceback" not in printed, wrong


def test_a_dry_run_without_a_network(cli, tmp_path):
    code, printed = cli("train", "wan21_14b_zero3", "--dry-run", "--output", tmp_path / "run")
    assert code == 0, printed
    assert "14,288,491,584 parameters" in printed and "that come with amd-plugin" in printed
    assert "[1000.0, 937.5, 833.3333129882812, 625.0]" in printed and not (tmp_path / "run").exists()
