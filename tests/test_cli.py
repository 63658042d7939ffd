"""The command line: what a user types, and what comes back."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import typer
from rich.console import Console

import amd_plugin
from amd_plugin import recipe
from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison.arms import arms
from tests.helpers.documentation import ROOT
from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY


def test_train_and_its_report(cli, tmp_path):
    folder = tmp_path / "run"
    code, printed = cli("train", "modes2d", *TINY, "--output", folder)
    assert code == 0, printed
    assert "held out: precision" in printed and "step 3/3" in printed
    assert re.search(r"step 3/3 .*classifier -?\d.*zone \d+%.*precision \d.*(s|ms)/update.*GB", printed), printed
    for waiting in ("preparing teacher and rewards", "evaluating", "writing the student", "writing the report"):
        assert waiting in printed
    assert f"student: {folder / 'student'}" in printed and f"amd-plugin evaluate {folder}" in printed
    html = (folder / "report.html").read_text()
    page = (ROOT / "docs" / "run-files.md").read_text()
    documented = {
        name.split("/")[0] for cell in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for name in re.findall("`(.*?)`", cell)
    }
    assert {file.name for file in folder.iterdir()} <= documented
    assert html.count("data:image/png;base64,") == 5, "beside each other, the teacher, and three evaluations"
    assert "deliberately unreliable" in html and html.count("<script") == 1

    code, printed = cli("train", "modes2d", *TINY, "--output", folder)
    assert code == 2 and f"amd-plugin train --resume {folder}" in printed and "Traceback" not in printed
    assert cli("train", "modes2d", *TINY, "--output", folder, "--resume", "auto")[0] == 0


def test_dmd_sets_amds_options_aside_and_says_so(cli, tmp_path):
    code, printed = cli("train", "modes2d", *TINY, "--set=objective.strength=0.2", "--objective", "dmd", "--dry-run")
    assert code == 0 and "objective dmd does not take sharpening, strength; not used" in printed
    assert '"guidance_window": null' in printed and "uses rewards: false" in printed, "not as a recipe has it"


LONG = 300 * "a"


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
        *((words, "too long for a name") for words in (["report", LONG], ["doctor", LONG], ["export", LONG], ["replay", LONG])),
        (["train", "modes2d", "--output", LONG], "too long for a name"),
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


def commands():
    """Every command: (words, its click object)."""
    from amd_plugin.cli import app

    for name, command in typer.main.get_command(app).commands.items():
        yield from (
            [((name, part), own) for part, own in command.commands.items()] if name == "recipes" else [((name,), command)]
        )


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_help_stands_alone_and_loses_no_default(cli, words, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = cli(*words, "-h")
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())
    assert code == 0 and text == " ".join(re.sub("[│╭╮╰╯─]", " ", cli(*words, "--help")[1]).split())
    assert re.search("Examples?: amd-plugin", text) or words in [("recipes", "list")]
    for option in command.params:
        if isinstance(option.show_default, str):
            assert f"[default: ({option.show_default})]" in text, option.name
        assert option.name == "help" or option.help, option.name


@pytest.mark.parametrize("width", [40, 71, 72, 100])
def test_help_never_cuts_an_option(width):
    script = "from amd_plugin.cli import app\nfor words in {!r}: app([*words, '--help'], standalone_mode=False)"
    words = [list(words) for words, _ in commands()]
    shown = subprocess.run(
        [sys.executable, "-c", script.format(words)], env={**os.environ, "COLUMNS": str(width)}, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for name, command in commands():
        for option in command.params:
            assert all(spelling in shown.stdout for spelling in option.opts), (name, option.name)
    assert "…" not in shown.stdout


def test_version_module_and_completion():
    run = lambda *arguments: subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)  # noqa: E731
    assert run("amd_plugin", "--version").stdout.strip() == f"amd-plugin {amd_plugin.__version__}"
    assert "--install-completion" in run("amd_plugin", "--help").stdout


def test_recipes_are_completed():
    from amd_plugin.cli import app

    train = typer.main.get_command(app).commands["train"]
    (recipe_argument,) = (option for option in train.params if option.name == "recipe")
    found = recipe_argument.shell_complete(train.make_context("train", [], resilient_parsing=True), "mod")
    assert [item.value for item in found] == ["modes2d"]


def test_machine_readable_output_is_nothing_but_json(cli, tmp_path, capfd):
    code, printed = cli("recipes", "list", "--json")
    assert code == 0 and {"digits", "sdxl_4step"} <= {row["name"] for row in json.loads(printed)}
    code, printed = cli("train", "modes2d", "--set=objective.name=dmd", "--dry-run", "--json", "--output", tmp_path / "run")
    described = json.loads(printed)
    assert code == 0 and described["recipe"] == "modes2d" and described["objective"] == "dmd"
    code, printed = cli("train", "modes2d", "--json")
    assert code == 2 and "only for --dry-run" in printed
    code, printed = cli("doctor", "--json")
    # What DeepSpeed logs while it is imported goes to the other stream, which the fixture puts behind.
    assert {"what", "found", "ok"} == set(json.JSONDecoder().raw_decode(printed)[0][0])


def test_what_plugins_print_is_no_part_of_it(cli, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("AMD_PLUGIN_LOAD", "")
    (tmp_path / "loud.py").write_text(
        "import amd_plugin\nprint('imported')\n@amd_plugin.hookimpl\ndef distill_rewards():\n    print('asked')\n    return {}\n"
    )
    code, printed = cli("plugins", "--json", "--plugin", tmp_path / "loud.py")
    assert code == 0 and "imported\nasked" in printed
    assert "rewards" in json.JSONDecoder().raw_decode(printed)[0]  # standard output comes first there


@pytest.mark.parametrize("rank", ["", "first"])
def test_a_number_of_a_launcher_that_is_none_is_said(cli, tmp_path, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    code, printed = cli("train", "modes2d", "--dry-run", "--output", tmp_path / "run")
    assert code == 2 and f"RANK: a launcher gives a number, got '{rank}'" in printed and "Traceback" not in printed


@pytest.mark.parametrize("terminal", [True, False])
def test_recipes_are_listed_in_80_columns_on_a_terminal_and_a_line_each_in_a_file(monkeypatch, terminal):
    from amd_plugin import cli as module

    written = io.StringIO()
    monkeypatch.setattr(module, "out", module.PlainConsole(file=written, width=80, force_terminal=terminal))
    module.list_recipes()
    lines, found = written.getvalue().splitlines(), {name: recipe.purpose(path) for name, path in recipe.shipped().items()}
    assert " ".join(" ".join(lines).split()) == " ".join(f"{name}: {purpose}" for name, purpose in found.items())
    assert max(map(len, lines)) <= 80 if terminal else len(lines) == len(found)


@pytest.mark.parametrize("width", [40, 60])
def test_a_plan_is_whole_on_a_narrow_terminal(monkeypatch, width):
    from amd_plugin import cli as module

    written = io.StringIO()
    monkeypatch.setattr(module, "out", Console(file=written, width=width, force_terminal=True, color_system=None))
    module.app(["plan", "modes2d", "--gpus", "1"], standalone_mode=False)
    assert "…" not in written.getvalue() and "  activations: " in written.getvalue()
    assert "reserved beside that" in written.getvalue()


def test_a_report_into_a_folder_is_refused_before_it_is_made(cli, tiny, plugins, tmp_path):
    from amd_plugin.host import run

    run.train(tiny("train.max_steps=1"), plugins, tmp_path / "run")
    code, printed = cli("report", tmp_path / "run", "--output", tmp_path)
    assert code == 2 and f"{tmp_path}: is a folder; name the file to write, such as {tmp_path / 'report.html'}" in printed


def test_the_same_letters_in_another_order_are_nearest():
    from amd_plugin.errors import did_you_mean

    assert did_you_mean("adm", ["dmd", "amd"]) == " Did you mean 'amd'?"


@pytest.mark.parametrize(("width", "terminal"), [(80, False), (80, True), (40, True)])
def test_tables_never_cut_a_name(monkeypatch, width, terminal):
    from rich.table import Table

    from amd_plugin import cli as module

    names = ["amd_adaptation_only@guidance_scale=1.25", "amd_inverted_reward"]
    metrics = ["sliced_wasserstein", "precision", "coverage", "diversity"]
    table = Table(title="modes2d: mean over 8 seeds")
    for column in ("arm", *metrics):
        table.add_column(column)
    for name in names:
        table.add_row(name, *["0.123 (8/8)"] * len(metrics))
    written = io.StringIO()
    monkeypatch.setattr(module, "out", module.PlainConsole(file=written, width=width, force_terminal=terminal))
    module.show_whole(table)
    text = written.getvalue()
    assert all(word in text for word in (*names, *metrics)) and text.count("0.123 (8/8)") == 8 and "…" not in text


def test_plugins(cli):
    code, printed = cli("plugins")
    assert (
        code == 0
        and "amd (amd-plugin" in printed
        and "objectives: amd, best_of_k, decoupled_dmd, diffusion_nft, dmd" in printed
    )


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


def test_an_arm_is_no_tuning_of_another_objective_and_stays_in_its_folder(plugins):
    more = ["dmd@1=dmd objective.guidance_scale=1", "own@x=dmd objective.guidance_scale=2"]
    assert [arm.name for arm in arms(["dmd", "amd"], plugins, more=more)] == ["dmd", "amd", "dmd@1", "own@x"]
    for own, said in (
        ("dmd@x=amd", "arm 'dmd' is of objective dmd"), ("amd@x=dmd", "arm 'amd' is of objective amd"),
        ("..=amd", "would be the name of a folder"), (".=amd", "would be the name of a folder"), ("a/b=amd", "would be the name of a folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            arms(["dmd", "amd"], plugins, more=[own])


def test_an_arm_with_an_option_that_it_does_not_have_is_refused(cli, tmp_path):
    arguments = ("compare", "modes2d", *TINY, "--objectives", "dmd", "--output", tmp_path)
    code, printed = cli(*arguments, "--arm", "sharp=dmd objective.sharpening=2")
    assert code == 2 and "'sharp'" in printed and "has no option sharpening" in printed
    code, printed = cli(*arguments, "--arm", "sharp=amd objective.sharpenin=2")
    assert code == 2 and "arm 'sharp', objective.sharpenin=2: objective.sharpenin: unknown key" in printed
    assert "--set" not in printed


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


def unboxed(printed):
    return " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--max_steps", "In a recipe it is train.max_steps: give --set train.max_steps=VALUE"),
        ("--train.max-steps", "give --set train.max_steps=VALUE"),
        ("--sharpening", "give --set objective.sharpening=VALUE"),
        ("--sed", "(Possible options:"),
        ("--student-steps", "In a recipe it is model.student_steps: give --set model.student_steps=VALUE"),
        ("--nothing-like-it", "No such option: --nothing-like-it"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare", "plan", "recipes show", "recipes validate"])
def test_a_key_of_recipes_given_as_an_option_is_told_how_to_set_it(cli, command, given, said):
    code, printed = cli(*command.split(), "modes2d", given, "4")
    assert code == 2 and said in unboxed(printed)


def test_the_rewards_that_are_trained_on_come_before_those_of_an_evaluation(cli):
    code, printed = cli("train", "modes2d", "--rewards", "clip")
    assert code == 2 and "rewards or evaluate.rewards: give --set rewards=VALUE" in unboxed(printed)
