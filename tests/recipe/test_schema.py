"""The schema that editors check recipes with, and the tables and help texts that are made from the same declarations."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from amd_plugin import recipe
from amd_plugin.adapters import shim
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[2]


def problems(schema, text):
    return [error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_shipped_recipes_fit_the_schema(plugins, name):
    """As it is resolved, and as an editor reads it: with YAML 1.1, in which 1e-3 is text and 1.0e-3 a number."""
    assert not problems(recipe_schema(plugins), recipe.load(name, plugins).as_yaml())
    text = recipe.shipped()[name].read_text()
    assert not problems(recipe_schema(plugins), text)
    (line,) = (line for line in text.splitlines() if line.startswith("# yaml-language-server: $schema="))
    assert json.loads((recipe.shipped()[name].parent / line.partition("=")[2]).read_text())["title"] == "RecipeConfig"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("sharpening: 2.5", "sharpning: 2.5", "sharpning"), ("sharpening: 2.5", "sharpening: -1", "-1"),
        ("label_noise: 0.2", "lable_noise: 0.2", "lable_noise"), ("name: classifier", "name: clasifier", "clasifier"),
        ("floor:", "flor:", "flor"), ("- tensorboard", "- tensorbord", "tensorbord"), ("- precision", "- precison", "precison"),
        ("pipeline: null", "pipeline: StableDiffusionXLPipline", "StableDiffusionXLPipline"),
    ],
)  # fmt: skip
def test_typos_in_options_are_found_by_an_editor(plugins, old, new, word):
    text = recipe.load("modes2d", plugins).as_yaml()
    assert old in text
    schema = recipe_schema(plugins)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert any(word in message for message in problems(schema, text.replace(old, new, 1)))


def test_typos_in_lists_of_names_and_beside_other_names_are_found_by_an_editor(plugins):
    schema, text = recipe_schema(plugins), recipe.load("scenes", plugins).as_yaml()
    names = ("objects", recipe.load("scenes", plugins).config.data.options["objects"][0]), ("colours", "red"), ("counts", 2)
    for key, name in names:
        content = yaml.safe_load(text)
        assert name in content["data"][key]
        content["data"][key] = ["kee" if entry == name else entry for entry in content["data"][key]]
        assert any("kee" in message for message in problems(schema, yaml.safe_dump(content))), key
    content["objective"] = {"name": "dmd", "tolerance": "none"}
    assert any("none" in message for message in problems(schema, yaml.safe_dump(content))), "of amd, for --objective amd"
    content["rewards"] = [{"name": "video", "reward": {"name": "clipp"}}]
    assert any("clipp" in message for message in problems(schema, yaml.safe_dump(content)))


def test_every_reward_has_its_options_in_the_schema(plugins):
    rewards = recipe_schema(plugins)["$defs"]["RewardConfig"]
    assert [case["if"]["properties"]["name"]["const"] for case in rewards["allOf"]] == list(plugins.rewards())


def test_every_option_is_described_in_the_schema_and_the_help(plugins):
    objective = recipe_schema(plugins)["$defs"]["ObjectiveConfig"]
    amd = next(case["then"]["properties"] for case in objective["allOf"] if case["if"]["properties"]["name"]["const"] == "amd")
    parser = argparse.ArgumentParser()
    shim.add_arguments(parser, plugins)
    helped = {action.option_strings[0]: action.help for action in parser._actions}
    for name, field in AMDOptions.model_fields.items():
        assert amd[name]["description"] == field.description
        assert helped[f"--amd.{name}"].startswith(field.description.replace("%", "%%"))


def test_the_tables_in_the_docs_are_those_of_the_declarations():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_copied_recipe_finds_its_schema(cli, tmp_path):
    code, printed = cli("recipes", "copy", "modes2d", tmp_path / "mine.yaml")
    assert code == 0 and "recipe.schema.json" in printed
    schema = json.loads((tmp_path / "recipe.schema.json").read_text())
    text = (tmp_path / "mine.yaml").read_text()
    assert not problems(schema, text) and problems(schema, text.replace("sharpening:", "sharpning:"))
    assert cli("recipes", "copy", "digits", tmp_path)[0] == 0, "the schema is there already"


def test_every_key_of_a_recipe_is_described_in_the_schema(plugins):
    """What an editor shows for a key: for a task's and a reward's options, which are no declared models, their docstrings."""
    sections = recipe_schema(plugins)["$defs"]
    bare = [
        f"{case['if']['properties']}: {key}"
        for section in ("DataConfig", "RewardConfig")
        for case in sections[section]["allOf"]
        for key, value in case["then"]["properties"].items()
        if not value.get("description") or value["description"].startswith("as for")
    ]
    assert not bare


def test_a_required_option_that_is_missing_is_found_by_an_editor(plugins):
    schema, content = recipe_schema(plugins), yaml.safe_load(recipe.load("modes2d", plugins).as_yaml())
    for section, key, changed in (
        ("data", "source", {"task": "prompts"}), ("data", "task", {"source": "prompts.txt"}),
        ("rewards", "path", [{"name": "clip"}]), ("evaluate", "path", {"rewards": [{"name": "clip"}]}),
    ):  # fmt: skip
        assert problems(schema, yaml.safe_dump({**content, section: changed})) == [f"'{key}' is a required property"]
