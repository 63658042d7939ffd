"""What judges a run is named in its recipe, and is not what the run was trained on."""

import json

import pytest

from amd_plugin.errors import InputError
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host import run
from tests.helpers.recipes import ON_THE_COMMAND_LINE


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluate.rewards=[{name: classifier}]"], "evaluate.rewards.0: 'classifier' is rewards.0 with the same options"),
        (["evaluate.rewards=[{name: classifier, floor: 1e-2, weight: 3}]"], "circular"),
        (["evaluate.rewards=[{name: random}, {name: clasifier}]"], "evaluate.rewards.1.name"),
        (["evaluate.rewards=[{name: classifier, flor: 0.1}]"], "evaluate.rewards.0.flor: unknown key. Did you mean 'floor'?"),
        (["evaluate.held_out=[]"], "evaluate.held_out: name at least one metric"),
        (["evaluate.features={path: x, dtype: fp8}"], "evaluate.features.dtype"),
    ],
)  # fmt: skip
def test_judges_that_are_none_are_said(tiny, overrides, said):
    with pytest.raises(InputError) as caught:
        tiny(*overrides)
    assert said in str(caught.value)


def test_the_same_reward_with_other_options_may_judge_and_a_reward_alone_may(tiny):
    judges = tiny("evaluate.rewards=[{name: classifier, floor: 0.1}]", "evaluate.held_out=[]").config.evaluate.rewards
    assert judges[0].options["floor"] == 0.1


class Judges:
    @hookimpl
    def distill_rewards(self):
        def broken(media, prompts):
            raise RuntimeError("out of ink")

        def partly(media, prompts):
            return [None if n % 2 else 1.0 for n in range(len(media))]

        def wants_label(media, prompts, labels):
            return labels.float()

        return {"broken": lambda: broken, "partly": lambda: partly, "label": lambda: wants_label}


def test_a_judge_that_fails_stops_neither_training_nor_evaluation(tiny, plugins, tmp_path):
    plugins.register(Judges())
    recipe = tiny("evaluate.rewards=[{name: broken}, {name: partly}, {name: label}]")
    found = run.train(recipe, plugins, tmp_path / "run")
    assert "broken" not in found and found["partly"] == 1 and found["label"] == 3.5
    evaluate(tmp_path / "run", plugins, samples=80, teacher=False)
    content = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    rows = content["metrics"]
    assert rows["held_out/broken"]["value"] is None and rows["held_out/partly"]["n"] == 40
    assert any("out of ink" in note for note in content["notes"])
    assert any("held_out/partly: 40 of 80" in note for note in content["notes"])


def test_a_reward_the_objective_ignored_was_not_trained_on(tiny, plugins, tmp_path):
    run.train(tiny(objective="dmd"), plugins, tmp_path / "run")
    evaluate(tmp_path / "run", plugins, samples=80, teacher=False)
    content = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert content["trained_on"] == []
    assert content["metrics"]["reward/classifier"]["kind"] == "reward, not trained on"


def test_held_out_rewards_are_compared_too(cli, tmp_path, forked_workers):
    judge = "--set=evaluate.rewards=[{name: classifier, floor: 0.1}]"
    code, printed = cli("compare", "modes2d", *ON_THE_COMMAND_LINE, judge, "--seeds", 1, "--output", tmp_path / "c")
    assert code == 0, printed
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert content["better"]["classifier"] == "up" and len(content["teacher"]["classifier"]) == 1
    assert "classifier" in (tmp_path / "c" / "compare.md").read_text()
