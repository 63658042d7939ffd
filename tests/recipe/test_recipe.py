"""Recipes: valid ones pass, and problems are reported with their places, all at once."""

import dataclasses
import functools
import os
import re
import threading

import pytest
import yaml
from accelerate import Accelerator

from amd_plugin import recipe
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host.running.recipe_changes import differences
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.objectives.dmd import DMDObjective
from amd_plugin.tasks.modes2d import Modes2D

GOOD = recipe.shipped()["modes2d"].read_text()


@pytest.fixture
def problems(tmp_path, plugins):
    """The error lines of a recipe made from the shipped one by replacing text."""

    def check(*replacements, text=None, overrides=()):
        text = GOOD if text is None else text
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as caught:
            recipe.load(str(path), plugins, overrides)
        return [line.replace(str(path), "my.yaml") for line in str(caught.value).splitlines()]

    return check


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_shipped_recipes_are_valid_and_reproduce_themselves(name, plugins, tmp_path):
    loaded = recipe.load(name, plugins)
    again = tmp_path / f"{name}.yaml"
    again.write_text(loaded.as_yaml())
    assert recipe.load(str(again), plugins).as_dict() == loaded.as_dict()
    assert loaded.config.evaluate.held_out


def test_all_problems_at_once_with_their_lines(problems):
    messages = problems(
        ("  group_size: 8", "  gruop_size: 8"), ("  network: mlp", "  network: cnn"), ("  fake_updates: 3", "  fake_updates: three"),
    )  # fmt: skip
    assert len(messages) == 3
    lines = GOOD.splitlines()
    at = lines.index("  group_size: 8") + 1
    assert f"my.yaml:{at}:3: train.gruop_size: unknown key. Did you mean 'group_size'?" in messages
    assert any(re.match(r"my.yaml:\d+:3: model.network: .*'mlp', 'dit', 'sdxl' or 'wan', got 'cnn'", line) for line in messages)
    assert any("train.fake_updates" in line and "got 'three'" in line for line in messages)


def test_structure_options_and_names_are_checked_together(problems):
    messages = problems(
        ("  fake_updates: 3", "  foo: 1\n  fake_updates: 3"), ("  name: amd", "  name: amd\n  strenght: 0.5"),
        ("  label_noise: 0.2", "  lable_noise: 0.2"), ("  - name: classifier", "  - name: clasifier"),
    )  # fmt: skip
    for part in ("train.foo", "objective.strenght", "data.lable_noise", "rewards.0.name"):
        assert any(part in line for line in messages), part
    assert len(messages) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  max_steps: 400", "  max_steps: 400\n  max_steps: 500", "stands twice"),
        ("  group_size: 8", "  group_size: 7", "must divide train.batch_size 192, got 7"),
        ("  group_size: 8", "  group_size: 1", "needs at least 2, got 1"),
        ("  group_size: 8", "  group_size: true", "got True"),
        ("  group_size: 8", '  group_size: "8"', "got '8'"),
        ("  student_lr: 1.0e-3", "  student_lr: .nan", "finite"),
        ("  student_lr: 1.0e-3", "  student_lr: .inf", "finite"),
        ("  student_lr: 1.0e-3", "  student_lr: -1e-3", "greater than 0"),
        ("  student_lr: 1.0e-3", "  student_lr: '1e-3'", "got '1e-3'"),
        ("  student_lr: 1.0e-3\n", "", "train.student_lr: required, but not given"),
        ("  name: amd", "  name: amdd", "Did you mean 'amd'?"),
        ("  name: amd", "  name: amd\n  strenght: 0.5", "Did you mean 'strength'?"),
        ("  name: amd", "  name: amd\n  strength: 1.0", "objective.strength: must be less than 1"),
        ("  name: amd", "  name: amd\n  side: left", "got 'left'"),
        ("  task: modes2d", "  task: modes3d", "Did you mean 'modes2d'?"),
        ("  network: mlp", "  network: mlp\n  student_from: /s", "student_from: is for a pipeline at model.path, and this network is"),
        ("  network: mlp", "  network: mlp\n  decoder: taesd", "model.decoder: is for a pipeline"),
        ("  network: mlp", "  network: wan\n  pixels: [8, 8]", "is for a pipeline at model.path, and this network is made here; got [8, 8]"),
        ("  label_noise: 0.2", "  label_noise: 2", "data.label_noise"),
        ("  label_noise: 0.2", "  means: [[[0, 0]], [[1]]]", "data.means: must be [classes][modes][x, y]"),
        ("  label_noise: 0.2", "  weights: [1, 2]", "data.weights: must be one per mode, 3 of them, got 2"),
        ("  label_noise: 0.2", "  lable_noise: 0.2", "Did you mean 'label_noise'?"),
        ("  - name: classifier", "  - name: clasifier", "Did you mean 'classifier'?"),
        ("  - name: classifier", "  - name: classifier\n    flor: 0.1", "Did you mean 'floor'?"),
        ("rewards:\n  - name: classifier\n", "", "needs at least one entry under rewards"),
        ("[precision, tv, sliced_wasserstein, coverage]", "[precision, tvv]", "Did you mean 'tv'?"),
        ("[precision, tv, sliced_wasserstein, coverage]", "[]", "held_out"),
        ("  fake_updates: 3", "\tfake_updates: 3", "tab"),
        ("  fake_updates: 3", "  fake_updates: &three 3\n  warmup_steps: *three", "aliases are not allowed"),
        ("  fake_updates: 3", "  fake_updates: !!python/object/apply:os.system [ls]", "tags are not allowed"),
        ("  max_steps: 400", f"  max_steps: {'9' * 6000}", "a number of 6000 digits"),
        ("  max_steps: 400", f"  max_steps: {'[' * 3000}1{']' * 3000}", "nested more than 40 levels deep"),
        ("  fake_updates: 3", "  sigma: [0.9, 0.1]", "train.sigma: must be [low, high]"),
        ("  fake_updates: 3", "  betas: [1.0, 0.9]", "train.betas.0"),
        ("  network: mlp", "  network: dit", "model.network: samples of modes2d have shape (2,) and need 'mlp', got 'dit'"),
        ("  samples: 2000", "  samples: 20", "evaluate.samples: must be at least five per class, 40, got 20"),
        ("  name: amd", "  name: amd\n  match_sigma: [0.5, 30]", "objective.match_sigma: must be fractions"),
        ("  name: amd", "  name: amd\n  strength: 1.5", "objective.strength: must be less than 1"),
        ("  fake_updates: 3", '  project: "a\\ud800"', r"train.project: must be text of whole characters, got 'a\ud800'"),
        ("  fake_updates: 3", '  "a\\ud800": 3', "must be text of whole characters, got"),
        ("rewards:\n  - name: classifier\n", "rewards:\n  - name: classifier\n    timeout: 1e300\n", "timeout: must be less than"),
        ("  samples: 2000", "  samples: 100000000000000", "evaluate.samples: must be less than or equal to 10000000"),
        ("train:\n", "distributed: {timeout: 1e15}\ntrain:\n", "distributed.timeout: must be less than"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(problems, old, new, message):
    messages = problems((old, new))
    assert len(messages) == 1, messages
    assert message in messages[0]
    assert re.match(r"my\.yaml:\d+:\d+: ", messages[0]), messages[0]


def test_a_reward_gradient_is_not_that_of_rewards_normalised_one_by_one(problems):
    """It would be in the rewards' own units, and divided by the spread of what has none."""
    normalised = ("  fake_updates: 3", "  fake_updates: 3\n  aggregation: normalize_then_sum")
    [message] = problems(normalised, ("  name: amd", "  name: amd\n  reward_gradient: 0.1"))
    assert "train.aggregation: the gradient that the objective follows" in message
    assert "set sum_then_normalize, got 'normalize_then_sum'" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("# only a comment\n", "an empty file"),
        ("- a\n- b\n", "a list"),
        ("a: [1, 2\n", "my.yaml:"),
        (b"\xff\xfe", "cannot be read"),
        ("a: 1\n" * 200_001, "they have 1,000,000 bytes at most, got 1,000,005"),
    ],
)
def test_files_that_are_no_recipes(problems, text, message):
    assert message in problems(text=text)[0]


@pytest.mark.parametrize(
    "name", ["x" * 5000 + ".yaml", "x" * 5000, "folder.yaml", "pipe.yaml", "zero.yaml", "loop.yaml", "/dev/zero"]
)
def test_names_of_no_file(name, plugins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(InputError, match=r"no such file|nor a file"):
        recipe.load(name, plugins)


def test_yaml_12_scalars(plugins, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(GOOD.replace("fake_updates: 3", "fake_updates: 012").replace("student_lr: 1.0e-3", "student_lr: 1e-5"))
    train = recipe.load(str(path), plugins).config.train
    assert train.fake_updates == 12 and train.student_lr == 1e-5


def test_overrides(plugins, problems):
    loaded = recipe.load("modes2d", plugins, ["train.max_steps=7", "train.student_lr=2e-4", "rewards.0.floor=0.5"])
    assert loaded.config.train.max_steps == 7 and loaded.config.train.student_lr == 2e-4
    assert loaded.config.rewards[0].options["floor"] == 0.5
    assert problems(overrides=["train.max_step=7"]) == [
        "--set train.max_step=7: train.max_step: unknown key. Did you mean 'max_steps'?"
    ]
    assert problems(overrides=["max_steps=7"]) == ["--set max_steps=7: max_steps: unknown key. Did you mean 'train.max_steps'?"]
    assert problems(overrides=["guidance_scale=2"])[0].endswith("unknown key. Did you mean 'objective.guidance_scale'?")
    assert problems(overrides=["train.label_noise=0"])[0].endswith("unknown key. Did you mean 'data.label_noise'?")
    assert "there is no 'rewards.3'" in problems(overrides=["rewards.3.floor=1"])[0]
    assert "there is no 'rewards.999" in problems(overrides=[f"rewards.{'9' * 5000}.floor=1"])[0]
    assert "must read key.key=value" in problems(overrides=["train.max_steps"])[0]
    assert "not YAML" in problems(overrides=["train.max_steps=[1"])[0]
    half = 'data.geometry="\\ud800"'
    assert problems(overrides=[half]) == [rf"--set {half}: data.geometry: must be text of whole characters, got '\ud800'"], (
        "the whole recipe was printed"
    )
    assert "must read key.key=value" in problems(overrides=["data.\udcff=1"])[0]


def test_another_objective_sets_amds_options_aside(plugins):
    loaded = recipe.load("modes2d", plugins, ["objective.strength=0.3"], objective="dmd")
    assert loaded.unused_options == ["sharpening", "strength"] and "strength" not in loaded.objective_options
    assert loaded.objective_options["normalizer"] == "per_sample"
    assert loaded.config.objective.options["strength"] == 0.3


def test_the_resolved_recipe_holds_every_default(plugins):
    resolved = yaml.safe_load(recipe.load("modes2d", plugins).as_yaml())
    assert resolved["objective"]["sharpening_kind"] == "exponential" and resolved["objective"]["side"] == "auto"
    assert resolved["data"]["std"] == 0.12 and resolved["rewards"][0]["floor"] == 0.01


def test_unknown_recipes_name_the_nearest(plugins):
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        recipe.load("digit", plugins)
    with pytest.raises(InputError, match="no such file"):
        recipe.load("nowhere/my.yaml", plugins)


def test_the_resolved_recipe_is_plain_yaml(plugins):
    assert yaml.safe_load(recipe.load("digits", plugins).as_yaml())["data"]["task"] == "digits"


def test_the_guidance_scale_is_read_in_one_way_and_0_stays_0(plugins):
    class Plugin:
        @hookimpl
        def distill_objectives(self):
            return {"unguided": lambda: DMDObjective()}

    plugins.register(Plugin())
    load = lambda *overrides, objective=None: recipe.load("modes2d", plugins, overrides, objective)  # noqa: E731
    assert load("objective.guidance_scale=0").objective.guidance_scale == 0
    assert load("objective.guidance_scale=2.5").objective.guidance_scale == 2.5
    assert load("objective.guidance_scale=2.5", objective="unguided").objective.guidance_scale == 1.0, "it has no such option"


def test_the_task_that_was_checked_is_the_task_that_trains(tiny, plugins, monkeypatch):
    built, original = [], Modes2D.__init__

    @functools.wraps(original)
    def counted(self, **options):
        built.append(self)
        original(self, **options)

    monkeypatch.setattr(Modes2D, "__init__", counted)
    loaded = tiny("data.classes=4", objective="dmd")
    trainer = Trainer(loaded, plugins, Accelerator(cpu=True))
    assert built == [loaded.task] and trainer.task is loaded.task


def test_the_objective_that_validation_built_is_the_one_that_trains(plugins):
    """A plugin may keep what it made, and wrap in ways that no copy survives."""
    built = []

    class Wrapper:
        def __init__(self, inner):
            self.inner, self.lock = inner, threading.Lock()

        def __getattr__(self, name):
            return getattr(self.inner, name)

    class Plugin:
        @hookimpl
        def distill_make_objective(self, name, factory, options):
            built.append(Wrapper(factory(**options)))
            return built[-1]

    plugins.register(Plugin())
    loaded = recipe.load("modes2d", plugins)
    assert [loaded.objective] == built and loaded.take_objective(plugins) is built[0]
    assert loaded.take_objective(plugins) is built[1], "a further run of the same recipe shares no state with the first"


def test_needs_with_a_typo_are_a_message_and_no_traceback(plugins):
    class Mine(DMDObjective):
        @property
        def needs(self):
            return dataclasses.replace(super().needs, rewards=True)

    class Plugin:
        @hookimpl
        def distill_objectives(self):
            return {"mine": Mine}

    plugins.register(Plugin())
    with pytest.raises(InputError, match="rewards"):
        recipe.load("modes2d", plugins, objective="mine")


@pytest.mark.parametrize("objective", ["dmd", "dmd2"])
def test_decoupled_noise_levels_of_plain_objectives_say_what_to_use(plugins, objective):
    with pytest.raises(InputError, match=r"objective\.guidance_sigma: was removed: use objective decoupled_dmd"):
        recipe.load("modes2d", plugins, ["objective.guidance_sigma=[0.1, 0.9]"], objective)
    recipe.load("modes2d", plugins, ["objective.guidance_sigma=null"], objective)


def test_ranges_of_a_third_partys_needs_are_fractions(plugins):
    class Plugin:
        @hookimpl
        def distill_objectives(self):
            return {"far": lambda: DMDObjective(match_sigma=(0.5, 1.5))}

    plugins.register(Plugin())
    with pytest.raises(InputError, match="must be fractions of the schedule"):
        recipe.load("modes2d", plugins, ["objective={name: far}"])


def test_a_saved_recipe_with_removed_options_is_the_same_recipe(plugins):
    loaded = recipe.load("modes2d", plugins)
    saved = loaded.as_dict()
    saved["objective"] |= {"baseline": "group", "limit": 1.0, "zone": -0.5, "squash": "clip", "coherence_gate": False}
    assert not loaded.differs(saved, differences)
    saved["objective"]["limit"] = 0.5
    assert loaded.differs(saved, differences) == ["objective.limit: 0.5 -> None"]


def test_a_recipe_saved_before_an_option_came_is_the_same_recipe(plugins):
    loaded, longer = (recipe.load("modes2d", plugins, more) for more in ((), ["objective.advantage_gradient=0.3"]))
    saved = loaded.as_dict()
    del saved["objective"]["advantage_gradient"]
    assert not loaded.differs(saved, differences)
    assert longer.differs(saved, differences) == ["objective.advantage_gradient: None -> 0.3"]
    saved["objective"].pop("sharpening_kind")
    assert loaded.differs(saved, differences) == ["objective.sharpening_kind: None -> exponential"], "it did not come since"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{nam: clip, path: x}", "rewards.0.reward.name: required, but not given"),
        ("{name: 3}", "rewards.0.reward.name: must be text, got 3"),
        ("{name: clipp, path: x}", "rewards.0.reward.name: unknown reward 'clipp'. Did you mean 'clip'?"),
        ("{name: clip, pth: x}", "rewards.0.reward.pth: unknown key. Did you mean 'path'?"),
        ("{name: video, reward: {name: clipp}}", "rewards.0.reward.reward.name: unknown reward 'clipp'"),
    ],
)
def test_the_entry_of_a_reward_inside_another_is_checked(plugins, entry, said):
    recipe.load("moving_digits", plugins, ["rewards=[{name: video, reward: {name: clip, path: x}}]"])
    with pytest.raises(InputError) as error:
        recipe.load("moving_digits", plugins, [f"rewards=[{{name: video, reward: {entry}}}]"])
    assert said in str(error.value)


def test_a_name_and_a_file_cannot_be_mistaken_for_each_other(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("recipes", "copy", "modes2d")[0] == 0
    assert cli("recipes", "validate", "modes2d")[0] == 0, "the copy is still the same"
    copy = tmp_path / "modes2d.yaml"
    copy.write_text(copy.read_text().replace("max_steps:", "max_steps: 7 #"))
    code, printed = cli("train", "modes2d", "--dry-run")
    assert code == 2 and "the file modes2d.yaml here differs from it" in printed
    assert "max_steps: 7" in cli("recipes", "show", "modes2d.yaml")[1]
    assert "max_steps: 7" not in cli("recipes", "show", str(recipe.shipped()["modes2d"]))[1]
    copy = copy.rename("modes2d.yml")
    code, printed = cli("train", "modes2d", "--dry-run")
    assert code == 2 and "the file modes2d.yml here differs from it" in printed
    copy.rename("digits")
    assert cli("recipes", "show", "./digits")[0] == 0
    copy = tmp_path / "mine"
    copy.write_text("data: {}\n")
    code, printed = cli("recipes", "show", "mine")
    assert code == 2 and "For the file, write ./mine" in printed
    copy = copy.rename(tmp_path / "of_mine.yaml")
    code, printed = cli("recipes", "show", "./ofmine.yaml")
    assert code == 2 and "no such file. Did you mean 'of_mine.yaml'?" in printed
    code, printed = cli("recipes", "show", "digits.yml")
    assert code == 2 and "no such file. The shipped recipe is called 'digits'" in printed


def test_a_removed_key_of_a_section_is_accepted_at_the_value_that_is_always_used(plugins):
    assert recipe.load("digits", plugins, ["train.reuse_rollouts=false"]).config == recipe.load("digits", plugins).config
    with pytest.raises(InputError, match=r"train.reuse_rollouts: was removed: set train.rollouts: harvest"):
        recipe.load("digits", plugins, ["train.reuse_rollouts=true"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.held_out=precision", "evaluate.held_out: must be a list, got 'precision'. Write [precision]"),
        ("rewards=classifier", "rewards: must be a list, got 'classifier'. Write [{name: classifier}]"),
        ("rewards=[classifier]", "rewards.0: must be keys with values, got 'classifier'. Write {name: classifier}"),
        ("objective=amd", "objective: must be keys with values, got 'amd'. Write {name: amd}"),
        ("train.sigma=0.5", "train.sigma: must be a list, got 0.5"),
        ("model.lora=64", "model.lora: must be keys with values, got 64"),
    ],
)
def test_a_word_in_place_of_a_list_or_keys_is_answered_with_what_to_write(problems, override, said):
    """What was said, that an array or an object is needed, are words of JSON."""
    assert problems(overrides=[override]) == [f"--set {override}: {said}"]


def test_problems_of_held_out_rewards_are_told_with_all_others(problems):
    messages = problems(overrides=["train.max_step=7", "evaluate.rewards=[{name: classifierr}]"])
    assert len(messages) == 2 and "Did you mean 'classifier'?" in messages[1]


def test_what_is_wrong_with_a_file_is_told_at_the_key_that_names_it(tmp_path, problems):
    """The line was that of the section, and the key stood twice."""
    text = recipe.shipped()["sdxl_4step"].read_text()
    (line,) = problems(text=text, overrides=["data.source=nowhere.txt"])
    assert line.startswith("--set data.source=nowhere.txt: data.source: nowhere.txt: there is no such file")
    (line,) = problems(("prompts/images.txt", "nowhere.txt"), text=text)
    assert re.match(r"my\.yaml:\d+:3: data\.source: nowhere\.txt: there is no", line)
    (line,) = problems(text=text, overrides=[f"model.path={tmp_path}"])
    assert line.startswith(f"--set model.path={tmp_path}: model.path: {tmp_path} is no diffusers pipeline")


def test_a_hook_that_gives_a_reward_itself_is_told_to_give_what_makes_it(plugins, problems):
    """Its arguments were asked for as options: "rewards.0.media: required, but not given"."""

    class Plugin:
        @hookimpl
        def distill_rewards(self):
            return {"bare": lambda media, prompts: media.flatten(1).mean(1)}

    plugins.register(Plugin())
    (line,) = problems(overrides=["rewards=[{name: bare}]"])
    assert "rewards.0.name: the plugin's distill_rewards gives the reward 'bare' itself" in line
    assert line.endswith("Give what makes it: {'bare': lambda: ...}")


def test_files_of_rewards_are_found_beside_the_recipe(plugins, tmp_path, monkeypatch):
    """As those of data and models are: a run started elsewhere looked for them there, or on the hub."""

    class Plugin:
        @hookimpl
        def distill_rewards(self):
            return {
                "file": lambda path, clip="": lambda media, prompts: media[:, 0],
                "twice": lambda of, more=None: lambda media, prompts: media,
            }

    plugins.register(Plugin())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "head.pt").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "my.yaml").write_text(GOOD)
    given = "{name: file, path: weights/head.pt, clip: openai/clip}"
    twice = f"{{name: twice, of: {given}, more: {{path: weights}}}}"
    overrides = (f"rewards=[{given}, {twice}]", "evaluate.rewards=[{name: file, path: weights/head.pt}]")
    config = recipe.load(str(tmp_path / "my.yaml"), plugins, overrides).config
    found = {"path": str(tmp_path / "weights" / "head.pt"), "clip": "openai/clip"}
    assert config.rewards[0].options == found and config.evaluate.rewards[0].options["path"] == found["path"]
    assert config.rewards[1].options == {"of": {"name": "file", **found}, "more": {"path": "weights"}}, "no reward"
