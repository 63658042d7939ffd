"""The hook contract, with plugins that work and plugins that do not."""

import asyncio
import importlib.metadata
import types
from pathlib import Path

import pluggy
import pytest
import torch

import amd_plugin
from amd_plugin import hookimpl, hookspecs
from amd_plugin.errors import InputError
from amd_plugin.objectives.amd import AMDObjective
from amd_plugin.objectives.dmd import DMDObjective
from amd_plugin.plugins import PluginManager
from tests.helpers.documentation import script


def plugin(**hooks):
    """An object with the given hooks."""
    return types.SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


class EntryPoint:
    """An installed entry point whose load does what the test says."""

    def __init__(self, name, load, value="third_party"):
        self.name, self.load, self.value, self.dist = name, load, value, None


@pytest.fixture
def installed(monkeypatch):
    """Pretends that entry points are installed, all allowed."""

    def install(*points):
        monkeypatch.delenv("AMD_PLUGIN_LOAD", raising=False)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: list(points))
        return amd_plugin.get_plugin_manager()

    return install


def test_amd_comes_in_through_its_entry_point(plugins):
    assert plugins.objectives()["amd"] is AMDObjective
    assert plugins.statuses["amd"].status == "active"
    assert plugins.statuses["amd"].distribution.startswith("amd-plugin")
    assert isinstance(plugins.make_objective("dmd", {"guidance_scale": 2.0}), DMDObjective)


def test_a_plugin_registered_by_hand(plugins):
    class Louder(DMDObjective):
        pass

    plugins.register(plugin(distill_objectives=lambda: {"louder": Louder}), "mine")
    assert isinstance(plugins.make_objective("louder", {"guidance_scale": 2.0}), Louder)


def test_an_import_error_is_isolated(installed):
    def broken():
        raise ImportError("No module named 'nowhere'")

    fine = plugin(distill_objectives=lambda: {"fine": DMDObjective})
    manager = installed(EntryPoint("bad", broken), EntryPoint("good", lambda: fine))
    assert "fine" in manager.objectives()
    assert manager.statuses["bad"].status == "failed"
    with pytest.raises(InputError, match="No module named 'nowhere'") as caught:
        manager.make_objective("whatever")
    assert isinstance(caught.value.__cause__, ImportError)


def test_wrong_hook_arguments_are_isolated(plugins):
    assert plugins.register(plugin(distill_on_step=lambda stepp, metrics: None), "wrong") is None
    assert "stepp" in plugins.statuses["wrong"].cause
    assert not plugins.has_plugin("wrong")
    plugins.hook.distill_on_step(step=1, metrics={})


def test_an_exception_in_a_hook_is_isolated(plugins):
    steps = []
    plugins.register(plugin(distill_on_step=lambda step: steps.append(step)), "watcher")
    plugins.register(plugin(distill_on_step=lambda step: 1 / 0), "breaks")
    for step in (1, 2):
        plugins.hook.distill_on_step(step=step, metrics={})
    assert steps == [1, 2]
    assert plugins.statuses["breaks"].status == "failed"
    assert "distill_on_step: ZeroDivisionError" in plugins.statuses["breaks"].cause


def test_a_name_that_is_taken_disables_the_later_plugin(plugins):
    plugins.register(plugin(distill_objectives=lambda: {"amd": DMDObjective, "extra": DMDObjective}), "thief")
    assert plugins.objectives()["amd"] is AMDObjective
    assert "extra" not in plugins.objectives()
    assert "'amd' is provided by plugin amd already" in plugins.statuses["thief"].cause


def test_a_hook_that_returns_nonsense_is_isolated(plugins):
    plugins.register(plugin(distill_objectives=lambda: 3), "odd")
    assert "amd" in plugins.objectives()
    assert "mapping" in plugins.statuses["odd"].cause


def test_unknown_hooks_are_reported_with_the_nearest_real_one(plugins):
    plugins.register(plugin(distill_rewardz=lambda: {}), "typo")
    assert "Did you mean 'distill_rewards'?" in plugins.statuses["typo"].cause
    assert plugins.statuses["typo"].status == "active"


def test_unknown_objectives_name_the_nearest(plugins):
    with pytest.raises(InputError, match="Did you mean 'amd'"):
        plugins.make_objective("amdd")


def test_an_objective_that_cannot_be_built_says_why(plugins):
    plugins.register(plugin(distill_objectives=lambda: {"picky": lambda: 1 / 0}), "mine")
    with pytest.raises(InputError, match=r"picky.*ZeroDivisionError"):
        plugins.make_objective("picky")


def test_construction_can_be_intercepted(plugins):
    def make(name, factory, options):
        return factory(**{**options, "guidance_scale": 7.0}) if name == "dmd" else None

    plugins.register(plugin(distill_make_objective=make), "wrapper")
    assert plugins.make_objective("dmd").guidance_scale == 7.0
    assert plugins.make_objective("amd").guidance_scale == 1.0


def test_two_entry_points_of_one_name(installed):
    manager = installed(EntryPoint("same", lambda: plugin()), EntryPoint("same", lambda: plugin()))
    assert [s.status for s in manager.statuses.values()] == ["active", "active", "failed"]


def test_allow_and_deny_lists(monkeypatch):
    monkeypatch.setenv("AMD_PLUGIN_LOAD", "")
    assert sorted(amd_plugin.get_plugin_manager().objectives()) == ["decoupled_dmd", "dmd", "dmd2"]
    monkeypatch.delenv("AMD_PLUGIN_LOAD")
    monkeypatch.setenv("AMD_PLUGIN_DISABLE", "amd")
    manager = amd_plugin.get_plugin_manager()
    assert manager.statuses["amd"].cause == "by AMD_PLUGIN_DISABLE"
    with pytest.raises(InputError, match="Plugin amd disabled"):
        manager.make_objective("amd")


def test_registering_twice_is_the_callers_mistake(plugins):
    registered = plugin()
    plugins.register(registered, "mine")
    with pytest.raises(ValueError, match="already"):
        plugins.register(registered, "mine")
    assert plugins.statuses["mine"].status == "active"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"distill_objectives": lambda: {"x": 3}}, "must map names to callables"),
        ({"distill_objectives": lambda: {1: DMDObjective}}, "must map names to callables"),
        ({"distill_rewards": lambda: torch.ones(2)}, "mapping"),
        ({"distill_objectives": lambda: exit(0)}, "SystemExit"),
    ],
)
def test_answers_that_make_no_sense_are_the_plugins_failure(plugins, hooks, message):
    plugins.register(plugin(**hooks), "odd")
    assert "amd" in plugins.objectives() and "classifier" in plugins.rewards()
    assert plugins.statuses["odd"].status == "failed" and message in plugins.statuses["odd"].cause
    assert plugins.make_objective("dmd").guidance_scale == 1.0


def test_schedules_states_and_samplers_are_checked(plugins):
    hooks = {
        "distill_strength_schedule": lambda: 2.0, "distill_state_dict": lambda: {"a": 1}, "distill_sigma_sampler": lambda: 5
    }  # fmt: skip
    for name, function in hooks.items():
        plugins.register(plugin(**{name: function}), name)
    assert plugins.hook.distill_strength_schedule(step=0, max_steps=1, metrics={}) == []
    assert plugins.hook.distill_state_dict() == [] == plugins.hook.distill_sigma_sampler(options={})
    assert all(plugins.statuses[name].status == "failed" for name in hooks)


def test_hook_wrappers_are_refused(plugins):
    @hookimpl(wrapper=True)
    def distill_on_step(step):
        return (yield)

    plugins.register(types.SimpleNamespace(distill_on_step=distill_on_step), "wrapping")
    assert "hook wrapper" in plugins.statuses["wrapping"].cause
    plugins.hook.distill_on_step(step=1, metrics={})


def test_one_module_behind_two_entry_points(installed):
    module = plugin(distill_objectives=lambda: {"fine": DMDObjective})
    manager = installed(EntryPoint("a", lambda: module), EntryPoint("b", lambda: module))
    assert "fine" in manager.objectives() and manager.statuses["b"].status == "failed"


def test_a_name_that_is_taken_costs_the_rewards_too(plugins):
    plugins.register(
        plugin(distill_objectives=lambda: {"amd": DMDObjective}, distill_rewards=lambda: {"acme": lambda: None}), "thief"
    )
    assert "acme" not in plugins.rewards() and "amd" in plugins.objectives()


def test_subclasses_that_pass_options_through(plugins):
    class Mine(DMDObjective):
        def __init__(self, **options):
            super().__init__(**options)

    plugins.register(plugin(distill_objectives=lambda: {"mine": Mine, "none": lambda: None}), "mine")
    from amd_plugin import recipe

    loaded = recipe.load("modes2d", plugins, ["objective.guidance_scale=2.0"], objective="mine")
    assert loaded.objective_options["guidance_scale"] == 2.0
    with pytest.raises(InputError, match="not an Objective"):
        plugins.make_objective("none")


def test_torch_modules_are_rewards_too(plugins):
    from amd_plugin.config import RewardConfig
    from amd_plugin.rewards.reward_set import RewardSet

    class Sum(torch.nn.Module):
        def __init__(self, task):
            super().__init__()
            assert task == "the task"

        def forward(self, media, prompts):
            return media.sum(1)

    plugins.register(plugin(distill_rewards=lambda: {"sum": Sum, "broken": lambda: 1 / 0}), "mine")
    scores = RewardSet([RewardConfig(name="sum", weight=2.0)], plugins, "the task")(
        torch.ones(3, 2), [""] * 3, labels=torch.zeros(3)
    )
    assert scores.total.tolist() == [4.0] * 3
    with pytest.raises(InputError, match="'broken' could not be built: ZeroDivisionError"):
        RewardSet([RewardConfig(name="broken")], plugins, None)


def test_the_manager_is_pluggys(plugins):
    assert isinstance(plugins, PluginManager) and isinstance(plugins, pluggy.PluginManager)
    assert {name for name in vars(plugins.hook) if name.startswith("distill_")} == {
        name for name in vars(hookspecs) if name.startswith("distill_")
    }


def test_every_hook_is_documented_with_its_exact_signature():
    import inspect
    import pathlib
    import re

    text = (pathlib.Path(__file__).parents[1] / "docs" / "hooks.md").read_text()
    for name, function in vars(hookspecs).items():
        if name.startswith("distill_"):
            documented = re.search(rf"^### `{name}\((.*?)\)`$", text, re.MULTILINE)
            assert documented, f"docs/hooks.md has no heading for {name}"
            assert [p.strip() for p in documented[1].split(",") if p.strip()] == list(inspect.signature(function).parameters)


def test_a_sampler_registered_by_hand_is_used(plugins, tiny, tmp_path):
    from amd_plugin.host import run

    roles = []

    def sampler(sigma, *, role, advantage, step, generator):
        roles.append((role, step, advantage is not None))
        assert sigma.shape == (16,) and torch.rand(1, generator=generator).shape == (1,)
        return sigma.clamp(0.4, 0.6)

    plugins.register(plugin(distill_sigma_sampler=lambda options: sampler), "levels")
    run.train(tiny("train.max_steps=2"), plugins, tmp_path / "run")
    assert set(roles) == {("fake_score", 0, True), ("fake_score", 1, True), ("student", 0, True), ("student", 1, True)}


def test_strength_schedules_multiply_and_plugin_state_is_kept(plugins, tiny, tmp_path):
    from amd_plugin.host import run

    steps, restored = [], []
    plugins.register(
        plugin(
            distill_strength_schedule=lambda step, max_steps: steps.append((step, max_steps)) or 0.5,
            distill_state_dict=lambda: ("mine", {"seen": len(steps)}),
            distill_load_state_dict=lambda state: restored.append(state["mine"]["seen"]),
            distill_export=lambda path: (path / "extra.txt").write_text("hello"),
        ),
        "mine",
    )
    run.train(tiny("train.max_steps=2"), plugins, tmp_path / "run")
    assert steps == [(0, 2), (1, 2)]
    assert (tmp_path / "run" / "student" / "extra.txt").read_text() == "hello"
    run.train(tiny("train.max_steps=3"), plugins, tmp_path / "run", resume="auto")
    assert restored == [2]


def test_the_example_of_a_reward_guided_noise_schedule(plugins, tiny, tmp_path):
    from amd_plugin.host import run

    schedule = script("examples/noise_by_advantage.py").NoiseByAdvantage(reach=0.5, zone=0.1)
    sampler = schedule.distill_sigma_sampler({"train": {"sigma": [0.02, 0.98]}})
    given = {"advantage": torch.tensor([-1.0, 0.0, 1.0]), "step": 0, "generator": None}
    torch.testing.assert_close(sampler(torch.full((3,), 0.2), role="student", **given), torch.tensor([0.59, 0.2, 0.2]))
    assert sampler(torch.full((3,), 0.2), role="fake_score", **given).unique().item() == pytest.approx(0.2)
    assert schedule.distill_strength_schedule(step=1, max_steps=2, metrics={"objective/zone_share": 0.05}) == 0.5
    moved, plain = amd_plugin.get_plugin_manager(), plugins
    moved.register(schedule, "noise")
    one, two = (run.train(tiny(manager=m), m, tmp_path / name) for m, name in ((moved, "moved"), (plain, "plain")))
    assert moved.statuses["noise"].status == "active" and one != two


class Unprintable(Exception):
    """An exception that fails where it is printed."""

    def __str__(self):
        raise SystemExit(7)

    __repr__ = __str__


def unprintable(*given):
    raise Unprintable


@pytest.mark.parametrize(
    ("hook", "given"),
    [
        ("distill_objectives", {}), ("distill_rewards", {}), ("distill_families", {}), ("distill_sigma_sampler", {"options": {}}),
        ("distill_strength_schedule", {"step": 0, "max_steps": 1, "metrics": {}}),
        ("distill_advantage_schedule", {"sigma": torch.ones(2), "step": 0, "max_steps": 1, "metrics": {}}),
        ("distill_on_step", {"step": 0, "metrics": {}}), ("distill_state_dict", {}), ("distill_load_state_dict", {"state": {}}),
        ("distill_export", {"path": Path(), "options": {}}),
        ("distill_make_objective", {"name": "dmd", "factory": DMDObjective, "options": {}}),
    ],
)  # fmt: skip
def test_an_exception_that_cannot_be_printed_is_isolated_in_every_hook(plugins, hook, given):
    plugins.register(plugin(**{hook: lambda: unprintable()}), "mute")
    getattr(plugins.hook, hook)(**given)
    assert plugins.statuses["mute"].cause == f"in {hook}: Unprintable, which cannot be printed (SystemExit)"


@pytest.mark.parametrize("error", [Unprintable(), ValueError(Unprintable())], ids=lambda error: type(error).__name__)
def test_an_exception_that_cannot_be_printed_is_told_everywhere_else(error, plugins, tiny, tmp_path):
    from amd_plugin.errors import RunError
    from amd_plugin.host import run

    def fail(*given, **options):
        raise error

    plugins.register(plugin(distill_sigma_sampler=lambda: fail), "mute")
    with pytest.raises(RunError, match=f"{type(error).__name__}, which cannot be printed"):
        run.train(tiny("train.max_steps=1"), plugins, tmp_path / "run")
    plugins.register(plugin(distill_objectives=lambda: {"mute": lambda: fail()}), "more")
    with pytest.raises(InputError, match=f"could not be built: {type(error).__name__}, which"):
        plugins.make_objective("mute")


ENDS = [SystemExit(3), KeyboardInterrupt("no signal"), asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_what_ends_a_program_in_a_plugin_is_a_failure_of_the_step(end, plugins, tiny, tmp_path):
    """Such a run ended without a word and without a checkpoint, with a number of the plugin's as its exit code."""
    from amd_plugin.errors import RunError
    from amd_plugin.host import checkpoint, run

    def sampler(sigma, step, **given):
        if step == 1:
            raise end
        return sigma.clone()

    plugins.register(plugin(distill_sigma_sampler=lambda: sampler), "leaving")
    recipe, folder = tiny("train.max_steps=2", "train.checkpoint_every=1"), tmp_path / "run"
    with pytest.raises(RunError, match=rf"{type(end).__name__}: .*\nStopped in step 2; saved .*step-000001"):
        run.train(recipe, plugins, folder)
    assert checkpoint.available(folder / "checkpoints")


def test_what_ends_a_program_in_an_objective_is_told(plugins, tiny, tmp_path, monkeypatch):
    from amd_plugin.errors import RunError
    from amd_plugin.host import checkpoint, run

    def leave(*given):
        raise SystemExit(3)

    plugins.register(plugin(distill_objectives=lambda: {"leaving": lambda: leave()}), "leaving")
    with pytest.raises(InputError, match="objective 'leaving' could not be built: SystemExit: 3"):
        plugins.make_objective("leaving")
    recipe, folder = tiny("train.max_steps=1"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(type(recipe.objective), "state_dict", leave)
        with pytest.raises(RunError, match=r"step 1 is not saved: SystemExit: 3\n.*it could not be saved: SystemExit: 3"):
            run.train(recipe, plugins, folder)
    assert not checkpoint.available(folder / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(run, "HeldOutEvaluation", leave)
        with pytest.raises(RunError, match="SystemExit: 3\nStopped before the first step"):
            run.train(recipe, plugins, folder, resume="auto")


def test_an_exception_that_is_its_own_cause_ends_a_run_in_words(plugins, tiny, tmp_path):
    from amd_plugin.errors import RunError
    from amd_plugin.host import run

    def sampler(sigma, **given):
        error = ValueError("around")
        raise error from error

    plugins.register(plugin(distill_sigma_sampler=lambda: sampler), "ring")
    with pytest.raises(RunError, match="ValueError: around\nStopped in step 1"):
        run.train(tiny("train.max_steps=1"), plugins, tmp_path / "run")


def test_processes_agree_on_the_first_ones_answer_and_on_who_failed():
    managers = [amd_plugin.get_plugin_manager() for _ in range(2)]
    for manager, schedule in zip(managers, (lambda: 0.5, lambda: 1 / 0), strict=True):
        manager.register(plugin(distill_strength_schedule=schedule), "moody")
    managers[1].register(plugin(), "of the second alone")
    parts = []
    for answer in ([0.5], []):
        parts.clear()
        own = [manager.hook.distill_strength_schedule(step=0, max_steps=1, metrics={}) for manager in managers]
        assert own == [answer, []]
        for _ in range(2):  # what each gives, then what all have given
            agreed = [
                m.agree(value, lambda part: parts.append(part) or parts[:2]) for m, value in zip(managers, own, strict=True)
            ]
        assert agreed == [answer] * 2
    causes = [manager.statuses["moody"].cause for manager in managers]
    assert causes == [
        "on process 1: in distill_strength_schedule: ZeroDivisionError: division by zero",
        causes[0].removeprefix("on process 1: "),
    ]


@pytest.mark.parametrize("factor", [float("nan"), -0.1, 1.5, float("inf"), True, "1", [1.0]])
def test_a_strength_that_is_none_sets_its_plugin_aside(plugins, factor):
    plugins.register(plugin(distill_strength_schedule=lambda: factor), "odd")
    assert plugins.hook.distill_strength_schedule(step=0, max_steps=1, metrics={}) == []
    assert "must return a factor in [0, 1]" in plugins.statuses["odd"].cause


@pytest.mark.parametrize(
    "factors", [torch.tensor([1.0, torch.nan]), torch.tensor([1.0, -1]), torch.ones(2, 1), torch.ones(2).int(), 1]
)
def test_factors_of_another_kind_set_their_plugin_aside(plugins, factors):
    plugins.register(plugin(distill_advantage_schedule=lambda: factors), "odd")
    assert plugins.hook.distill_advantage_schedule(sigma=torch.ones(2), step=0, max_steps=1, metrics={}) == []
    assert "must return finite factors [B]" in plugins.statuses["odd"].cause


def test_a_plugin_gets_copies(plugins):
    sigma, metrics = torch.ones(2), {"loss": 1.0}
    plugins.register(plugin(distill_advantage_schedule=lambda sigma, metrics: (metrics.clear(), sigma.zero_())[1]), "vandal")
    (factors,) = plugins.hook.distill_advantage_schedule(sigma=sigma, step=0, max_steps=1, metrics=metrics)
    assert factors.tolist() == [0, 0] and sigma.tolist() == [1, 1] and metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        lambda sigma: None, lambda sigma: sigma.tolist(), lambda sigma: sigma.round().long(), lambda sigma: sigma[:-1],
        lambda sigma: sigma[None], lambda sigma: sigma * torch.nan, lambda sigma: sigma - 1, lambda sigma: sigma + 1,
        lambda sigma: sigma.double(), lambda sigma: (sigma.zero_(), None)[1], lambda sigma: 1 / 0,
    ],
)  # fmt: skip
def test_levels_of_another_kind_are_refused(answer, plugins):
    """By the reference host, and by every adapter."""
    from types import SimpleNamespace

    from amd_plugin.adapters.bridge import HostBridge
    from amd_plugin.errors import RunError
    from amd_plugin.host.training.noise_levels import NoiseLevelSampler

    drawn, moves = torch.full((4,), 0.25), lambda sigma, advantage, **given: answer(sigma)
    batch = SimpleNamespace(uniform=lambda key, window: drawn, generator=lambda key: None, step=0)
    plugins.register(plugin(distill_sigma_sampler=lambda options: moves), "moving")
    sampler, bridge = (
        NoiseLevelSampler(SimpleNamespace(sigma=(0.0, 1.0)), [0.0], [moves]),
        HostBridge(DMDObjective(), plugins=plugins),
    )
    for ask in (
        lambda: sampler(batch, "student", advantage=torch.zeros(4)),
        lambda: bridge.move_noise_levels(drawn, "student"),
    ):
        with pytest.raises(
            RunError, match=r"sigma sampler .*: (must return a new tensor of 4 levels in \[0, 1\], .* got|Zero)"
        ):
            ask()
    assert drawn.tolist() == [0.25] * 4


@pytest.mark.parametrize("harm", ["deletes", "empties", "damages", "replaces"])
def test_an_export_hook_that_harms_the_student_is_undone(harm, plugins, tiny, tmp_path, caplog):
    import shutil

    from amd_plugin.checksums import checksums
    from amd_plugin.host import run

    def export(path):
        weights = next(path.rglob("*.safetensors"))
        if harm == "deletes":
            shutil.rmtree(path)
        elif harm == "replaces":
            shutil.rmtree(path)
            path.touch()
        else:
            weights.write_bytes(b"" if harm == "empties" else weights.read_bytes()[:-1] + b"x")

    fine = run.train(tiny("train.max_steps=1"), plugins, tmp_path / "fine")
    plugins.register(plugin(distill_export=export), "vandal")
    assert run.train(tiny("train.max_steps=1"), plugins, tmp_path / "run") == fine
    assert "distill_export of plugin vandal; the student was written again" in caplog.text
    weights = [
        {n: d for n, d in checksums(tmp_path / r / "student").items() if n.endswith("safetensors")} for r in ("fine", "run")
    ]
    assert weights[0] == weights[1] != {}


def test_a_plugin_that_is_slow_to_import_is_named_and_waited_for(installed, monkeypatch, caplog):
    import threading

    from amd_plugin import plugins as module

    monkeypatch.setattr(module, "SLOW", 0.01)
    told = threading.Event()
    monkeypatch.setattr(module.log, "warning", lambda *words: (caplog.records.append(words), told.set()))
    manager = installed(EntryPoint("sloth", lambda: told.wait(60) and plugin(distill_rewards=lambda: {"slow": lambda: None})))
    assert "slow" in manager.rewards() and told.is_set()
    words = caplog.records[0]
    assert "plugin sloth: still being imported" in words[0] % words[1:] and "AMD_PLUGIN_DISABLE=sloth" in words[-1]


def test_a_state_under_a_key_that_is_no_text_is_refused(plugins):
    plugins.register(plugin(distill_state_dict=lambda: (3, {})), "odd")
    assert plugins.hook.distill_state_dict() == [] and "a key that is text" in plugins.statuses["odd"].cause
