"""The command line: what a user types, and what comes back."""

import json

import pytest

import amd_plugin
from amd_plugin import recipe
from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison.arms import arms
from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY


def test_train_and_its_report(cli, tmp_path):
    folder = tmp_path / "run"
    code, printed = cli("train", "modes2d", *TINY, "--output", folder)
    assert code == 0, printed
    assert "held out: precision" in printed and "step 3/3" in printed
    html = (folder / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3 and "deliberately unreliable" in html and "<script" not in html

    code, printed = cli("train", "modes2d", *TINY, "--output", folder)
    assert code == 2 and "Pass --resume auto" in printed and "Traceback" not in printed
    assert cli("train", "modes2d", *TINY, "--output", folder, "--resume", "auto")[0] == 0


def test_dmd_sets_amds_options_aside_and_says_so(cli, tmp_path):
    code, printed = cli("train", "modes2d", *TINY, "--set=objective.strength=0.2", "--objective", "dmd", "--dry-run")
    assert code == 0 and "objective dmd does not take sharpening, strength; not used" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "modes2d", "--objective", "amdd"], "Did you mean 'amd'?"),
        (["train", "modes3d"], "Did you mean 'modes2d'?"),
        (["train", "modes2d", "--set=train.seed=x"], "train.seed"),
        (["train", "modes2d", "--set=rewards=[{name: randm}]"], "Did you mean 'random'?"),
        (["compare", "modes2d", "--seeds", "none"], "--seeds"),
        (["compare", "modes2d", "--objectives", "dmd,amdd"], "Did you mean 'amd'?"),
        (["compare", "modes2d", "--tune", "objective.guidance_scale"], "--tune"),
        (["compare", "modes2d", "--select-seeds", "5"], "--select-seeds"),
        (["compare", "modes2d", "--arm", "mine"], "--arm"),
        (["compare", "modes2d", "--arm", "../mine=amd"], "--arm"),
        (["compare", "modes2d", "--arm", "dmd=amd"], "two arms would be called 'dmd'"),
        (["report", "nowhere"], "neither a run"),
        (["recipes", "show", "digitz"], "Did you mean 'digits'?"),
    ],
)
def test_bad_input_ends_with_two_and_a_hint(cli, arguments, said):
    code, printed = cli(*arguments)
    assert code == 2 and said in printed and "Traceback" not in printed


def test_recipes(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = cli("recipes", "list")
    assert code == 0 and "modes2d: A class-conditional mixture" in printed and "digits: " in printed
    assert cli("recipes", "copy", "modes2d")[0] == 0
    code, printed = cli("recipes", "copy", "modes2d")
    assert code == 2 and "exists already" in printed
    assert cli("recipes", "validate", "modes2d.yaml", "digits")[0] == 0
    (tmp_path / "modes2d.yaml").write_text("model: 3\ntrian: {}\n")
    code, printed = cli("recipes", "validate", "modes2d.yaml")
    assert code == 2 and "modes2d.yaml:2:1: trian: unknown key. Did you mean 'train'?" in printed
    assert "model_teacher" not in cli("recipes", "show", "modes2d", "--set=train.seed=5")[1]
    assert json.loads(cli("recipes", "schema")[1])["title"] == "RecipeConfig"


def test_plugins(cli):
    code, printed = cli("plugins")
    assert code == 0 and "amd (amd-plugin" in printed and "objectives: amd, decoupled_dmd, dmd" in printed


@pytest.mark.slow
def test_settings_are_chosen_on_seeds_apart(cli, tmp_path):
    tune = ("--tune", "objective.guidance_scale=1,2", "--arm", "soft=amd objective.sharpening=0.5")
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", *tune, "--seeds", "0,1", "--select-seeds", "1,5",
                        "--output", tmp_path)  # fmt: skip
    assert code == 2 and "--select-seeds" in printed and "[1]" in printed
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", *tune, "--seeds", "1", "--select-seeds", "5,6",
                        "--workers", "1", "--output", tmp_path)  # fmt: skip
    assert code == 0, printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert list(content["arms"]) == ["dmd", "soft", *(f"{a}@guidance_scale={w}" for a in ("dmd", "soft") for w in (1, 2))]
    assert content["selected"].keys() == {"dmd", "soft"} and content["families"]["soft@guidance_scale=2"] == "soft"
    assert all(len(values) == 1 for values in content["arms"]["dmd"].values()), "chosen on 5 and 6, reported on 1"
    assert (tmp_path / "arms" / "soft@guidance_scale=2" / "seed-6").is_dir()
    assert "on the seeds 5, 6" in (tmp_path / "compare.md").read_text()
    assert "chosen on the seeds 5, 6" in printed and "on the seeds 5, 6" in (tmp_path / "report.html").read_text()
    assert content["unused"] == {"dmd": ["sharpening"]}
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd,amd", "--tune", "objective.sharpening=0.5",
                        "--seeds", "1", "--select-seeds", "5,6", "--workers", "1", "--output", tmp_path / "other")  # fmt: skip
    assert code == 0, printed
    content = json.loads((tmp_path / "other" / "compare.json").read_text())
    assert content["selected"]["dmd"] == "dmd" and content["selected"].keys() == {"dmd", "amd"}, (
        "what is not tuned is there too"
    )
    assert all(seconds > 0 for arm in content["seconds"].values() for seconds in arm)


def test_every_arm_is_tuned_alike_over_what_it_leaves_open(plugins):
    tune = ("objective.guidance_window=[0,0.5],[0.1,1]", "objective.sharpening=1,2", "train.student_lr=1e-3")
    own = ("mine=amd objective.sharpening=3",)
    found = {arm.name: arm for arm in arms(["dmd", "amd", "amd_paper", "decoupled_dmd"], plugins, tune=tune, more=own)}
    assert found["dmd@guidance_window=0.1-1@student_lr=1e-3"].overrides == (
        "objective.guidance_window=[0.1,1]", "train.student_lr=1e-3",
    ), "dmd has no sharpening"  # fmt: skip
    assert found["amd@guidance_window=0-0.5@sharpening=2@student_lr=1e-3"].family == "amd"
    families = [arm.family for arm in found.values()]
    counts = {"dmd": 1 + 2, "amd": 1 + 4, "amd_paper": 1 + 2, "decoupled_dmd": 1 + 1, "mine": 1 + 2}
    assert {family: families.count(family) for family in counts} == counts
    rewards = [RewardConfig(name="classifier")]
    weighed = {arm.name for arm in arms(["amd"], plugins, rewards, ablate=True, tune=("rewards.0.weight=0.5,2",))}
    assert "amd_paper@weight=2" in weighed and not any("reward@weight" in name for name in weighed), "these set their rewards"
    ablated = [arm.family for arm in arms(["dmd"], plugins, (), ablate=True, tune=("objective.guidance_scale=1,2",))]
    assert set(map(ablated.count, ablated)) == {3}, "controls are tuned as often as what they control"


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        (["objective.sharpning=1"], "sharpning: no arm"),
        (["train.ema=0.9", "train.ema=0.99"], "each key once"),
        (["=1"], "must read"),
    ],
)
def test_what_cannot_be_tuned_is_said(plugins, tune, said):
    with pytest.raises(InputError, match=said):
        arms(["dmd", "amd"], plugins, tune=tune)


def test_an_arm_with_an_option_that_it_does_not_have_is_refused(cli, tmp_path):
    arguments = ("compare", "modes2d", *TINY, "--objectives", "dmd", "--output", tmp_path)
    code, printed = cli(*arguments, "--arm", "sharp=dmd objective.sharpening=2")
    assert code == 2 and "'sharp'" in printed and "has no option sharpening" in printed


@pytest.mark.parametrize("guidance", [1.0, 1.25, 3.0])
def test_every_ablation_differs_from_plain_dmd(guidance):
    """And below guidance 2, where adaptation is off by default, those about AMD's parts differ from AMD and from each other."""
    plugins, parts = amd_plugin.get_plugin_manager(), []
    rewards = recipe.load("modes2d", plugins).config.rewards
    for arm in arms(["dmd"], plugins, rewards, ablate=True)[1:]:
        overrides = (*arm.overrides, f"objective.guidance_scale={guidance}")
        options = recipe.load("modes2d", plugins, overrides, arm.objective).objective_options
        made = plugins.make_objective("amd", options)
        assert made.needs.reward, arm.name
        if arm.name in ("amd_adaptation_only", "amd_sharpening_only", "amd_both", "amd_static", "amd_paper"):
            parts.append((made.strength, made.sharpening, made.static, made.sharpening_kind))
    assert guidance >= 2 or len(set(parts)) == len(parts) == 5


@pytest.mark.slow
def test_compare_pairs_seeds_resumes_and_reports(cli, tmp_path):
    folder = tmp_path / "comparison"
    arguments = [
        "compare",
        "modes2d",
        *TINY,
        "--set=train.log_every=1",
        "--objectives",
        "dmd,amd",
        "--seeds",
        "0,3",
        "--output",
        folder,
    ]
    code, printed = cli(*arguments, "--tune", "objective.guidance_scale=1.5")
    assert code == 0, printed
    content = json.loads((folder / "compare.json").read_text())
    assert content["task"] == "modes2d" and content["seeds"] == [0, 3]
    assert list(content["arms"]) == ["dmd", "amd", "dmd@guidance_scale=1.5", "amd@guidance_scale=1.5"]
    assert all(len(values) == 2 for arm in content["arms"].values() for values in arm.values())
    table = (folder / "compare.md").read_text()
    assert "Difference to dmd, in brackets" in table and "tuned best for each metric" in table
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 4

    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/*/evaluation.json")}
    assert len(stamps) == 8
    code, printed = cli(*arguments, "--ablate")
    assert code == 0, printed
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    more = json.loads((folder / "compare.json").read_text())["arms"]
    assert {"amd_adaptation_only", "amd_sharpening_only", "amd_random_reward", "amd_paper"} < set(more)
    assert more["dmd"] == content["arms"]["dmd"]
    code, printed = cli("report", folder, "--output", tmp_path / "all.html")
    assert code == 0 and "How samples were weighed" in (tmp_path / "all.html").read_text()


@pytest.mark.slow
def test_a_comparison_with_a_run_that_fails_keeps_the_others(cli, tmp_path):
    folder = tmp_path / "comparison"
    blocked = folder / "arms" / "amd" / "seed-0"
    blocked.mkdir(parents=True)
    (blocked / "cat.jpg").write_text("")
    code, printed = cli(
        "compare", "modes2d", *TINY, "--objectives", "dmd,amd", "--seeds", "1", "--workers", "1", "--output", folder
    )
    assert code == 1 and "amd, seed 0" in printed and "holds no run" in printed
    assert (folder / "arms" / "dmd" / "seed-0" / "evaluation.json").exists()
