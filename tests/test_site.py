"""The pages and the site: what they say to type is understood, what they name exists, and no link leads nowhere."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import types

import pytest
import torch
import typer
import yaml
from jsonschema import Draft202012Validator

from tests.helpers.documentation import ROOT, blocks
from tests.helpers.training import trained

OF_ONES_OWN = ("saturation", "landscape")  # rewards that their page writes
PLACEHOLDERS = {"RECIPE": "digits", "N": "1"}
PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
PAGES.remove("docs/cli.md")  # made from the command line itself
OWN = [page for page in PAGES if not re.search("/hosts|/upstream|/adapters", page)]  # others name settings of other toolkits
SYMPTOMS = ("Over-saturation", "Collapse", "The fake score oscillates", "Nothing happens", "Reward hacking", "Out of memory")


def commands(page, program="amd-plugin"):
    """(words after the program, whether it stands in a block and so is whole) of every command line of a page."""
    shown = [code for language in ("bash", "") for code in blocks(page, language)]
    shown += re.findall(r"^ {4}.*(?:\n {4}.*)*", (ROOT / page).read_text(), re.MULTILINE)  # Markdown's code without a fence
    lines = [line.strip() for code in shown for line in code.replace("\\\n", " ").splitlines()]
    named = re.findall(rf"`({program} [^`]+)`", (ROOT / page).read_text())
    found = dict.fromkeys([(line, True) for line in lines] + [(line, False) for line in named])
    return [(shlex.split(line, comments=True)[1:], whole) for line, whole in found if line.startswith(f"{program} ")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Where the tutorials' files are: recipes copied as they say, and the reward."""
    from amd_plugin import recipe as recipes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMD_PLUGIN_LOAD", os.environ["AMD_PLUGIN_LOAD"])  # --plugin adds to it
    recipes.copy("sdxl_4step", tmp_path / "mine.yaml")
    recipes.copy("wan21_14b_zero3", tmp_path)
    (reward,) = blocks("docs/tutorials/your-own-reward.md", "python")
    (tmp_path / "my_reward.py").write_text(reward)
    (tmp_path / "prompts.txt").write_text("a fox")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_understood(page, workplace):
    """Each is parsed by the command line itself, and a recipe is loaded with its overrides."""
    from amd_plugin import get_plugin_manager
    from amd_plugin import recipe as recipes
    from amd_plugin.cli import app
    from amd_plugin.evaluate.comparison.arms import arms, parse_seeds

    group = typer.main.get_command(app)
    for arguments, whole in commands(page):
        arguments = [PLACEHOLDERS.get(argument, argument) for argument in arguments]
        command, rest = group, arguments
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        try:
            given = command.make_context(command.name, list(rest)).params
        except Exception as error:
            if whole or type(error).__name__ != "MissingParameter":  # text may name a command without its arguments
                raise
            continue
        for seeds in (given.get("seeds"), given.get("select_seeds")):
            if isinstance(seeds, str):
                parse_seeds(seeds)
        if given.get("recipe") is not None:
            plugins, overrides = get_plugin_manager(), given.get("overrides") or ()
            loaded = recipes.load(given["recipe"], plugins, overrides, given.get("objective"))
            if command.name == "compare":
                chosen = {"ablate": given["ablate"], "tune": given["tune"] or (), "more": given["arm"] or ()}
                for arm in arms(given["objectives"].split(","), plugins, loaded.config.rewards, **chosen):
                    recipes.load(given["recipe"], plugins, (*overrides, *arm.overrides), arm.objective)


def test_commands_of_the_pages_do_not_take_each_others_folders(workplace):
    """Those of other settings, of `train` and of `compare`; the end of the main help and those of the commands count as pages."""
    from amd_plugin import get_plugin_manager
    from amd_plugin import recipe as recipes
    from amd_plugin.cli import app

    group, made = typer.main.get_command(app), {}
    ends = re.findall(
        r"amd-plugin \w[^,\n]*", "\n".join([app.info.epilog, *(each.epilog or "" for each in group.commands.values())])
    )
    shown = [words for page in PAGES if page != "docs/how-it-works.md" for words, _ in commands(page)]
    for name, *rest in (*shown, *(shlex.split(line)[1:] for line in ends)):
        if name not in ("train", "compare") or not rest or rest[0] in ("RECIPE", "--resume") or rest[0].isupper():
            continue
        given = group.commands[name].make_context(name, list(rest)).params
        loaded = recipes.load(given["recipe"], get_plugin_manager(), given["overrides"] or (), given.get("objective"))
        default = f"compare-{loaded.name}" if name == "compare" else f"{loaded.name}-{loaded.config.objective.name}"
        rest = [word for word in rest if word not in ("--dry-run", "--resume", "auto")]
        same = sorted(given["overrides"] or ()) if name == "compare" else sorted(rest)
        made.setdefault(str(given["output"] or f"runs/{default}"), []).append((name, given["recipe"], same))
    assert {folder: asked for folder, asked in made.items() if any(one != asked[0] for one in asked)} == {}
    assert len(made) > 15


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "python") and "/hosts/" not in page])
def test_scripts_have_what_is_typed(page):
    """Each lies in the repository, and its code has the subcommands and options; a benchmark's own scorer does not."""
    for (file, *rest), whole in commands(page, "python"):
        if file.startswith(("benchmarks/", "docs/", "examples/")):
            code = (ROOT / file).read_text()
            words = [word.split("=")[0] for word in rest if word.startswith("--") or (word == rest[0] and "." not in word)]
            assert [word for word in words if word not in code and word.removeprefix("--").replace("-", "_") not in code] == []
        else:
            assert whole and page == "docs/evaluation.md", file


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml") and "/hosts/" not in page])
def test_sections_of_recipes_are_right(page):
    """By the schema that editors use, which knows the options of tasks and rewards; the host pages have tests of their own."""
    schema = Draft202012Validator(json.loads((ROOT / "recipes" / "recipe.schema.json").read_text()))
    for code in blocks(page, "yaml"):
        problems = [problem for problem in schema.iter_errors(yaml.safe_load(code)) if problem.validator != "required"]
        assert [problem.message for problem in problems if problem.instance not in OF_ONES_OWN] == [], code


def test_the_trainers_tutorial_runs():
    (code,) = blocks("docs/tutorials/your-own-trainer.md", "python")
    names = {}
    exec(code, names)
    assert torch.isfinite(names["x0"].grad).all() and torch.isfinite(names["prediction"].grad).all()
    json.dumps(names["saved"])


def test_the_rewards_tutorial_runs(plugins):
    (code,) = blocks("docs/tutorials/your-own-reward.md", "python")
    module = types.ModuleType("documented")
    exec(code, module.__dict__)
    plugins.register(module, "documented")
    assert plugins.rewards()["little_ink"]()(torch.ones(3, 1, 8, 8), [""] * 3).tolist() == [-1.0] * 3


def settings():
    """Dotted names of all settings of recipes, from their schema."""
    schema = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())

    def under(node, prefix):
        if "$ref" in node:
            yield from under(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], prefix)
        for key, value in node.get("properties", {}).items():
            yield f"{prefix}{key}"
            yield from under(value, f"{prefix}{key}.")
        for kind in ("allOf", "anyOf", "oneOf", "then", "else"):
            for value in node[kind] if isinstance(node.get(kind), list) else [node[kind]] if kind in node else ():
                yield from under(value, prefix)

    return set(under(schema, ""))


@pytest.mark.parametrize("page", OWN)
def test_settings_exist(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    sections = "model|data|objective|train|evaluate|distributed"
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)[`=:]", text)) - {"evaluate.rewards"}
    assert named - {"objective.advantage_guidance_form"} <= settings()  # of an earlier commit, as its page says


def test_every_key_of_a_recipe_is_on_its_page_with_a_meaning():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert [name for name, meaning in rows if not meaning] == []
    of_objectives = {name for name in settings() if name.startswith("objective.")}
    assert {name.split(".")[-1] for name in settings() - of_objectives if "." in name} <= {name for name, _ in rows}


def documented_names():
    """Patterns of the names that the page lists, with its placeholders in capitals."""
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs/reading-a-run.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(.*?)`", row)]
    return {name: re.compile(re.sub(r"NAME|BAND|LEVEL|EDGE", r"[\\w./-]+", name)) for name in names}


def test_names_of_the_log_are_those_of_the_page(tiny, plugins):
    """What two cycles log is documented; what is documented is logged by them, or by a part of the code that they do not run."""
    trainer = trained(tiny, plugins, "objective.strength=0.5", "objective.guidance_scale=2", cycles=1, objective="amd")
    logged = set(trainer.cycle())
    assert len(logged) > 20
    patterns = documented_names()
    assert not [name for name in logged if not any(pattern.fullmatch(name) for pattern in patterns.values())]
    code = "\n".join(path.read_text() for path in (ROOT / "amd_plugin").rglob("*.py"))
    for name, pattern in patterns.items():
        words = [re.sub(r"_?(NAME|BAND|LEVEL|EDGE)", "", part) for part in name.split("/")]
        assert any(pattern.fullmatch(one) for one in logged) or all(word in code for word in words), name


def test_each_symptom_names_what_shows_it_and_what_to_change():
    text = (ROOT / "docs/troubleshooting.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    patterns = documented_names().values()
    for symptom in SYMPTOMS:
        shown, _, change = sections[symptom].partition("**Change**" if "**Change**" in sections[symptom] else "change |")
        names = re.findall(r"`(\w+/[\w/]+|hacking_alarm)`", sections[symptom])
        assert "**Shown by**" in shown and (names or "amd-plugin plan" in shown), symptom
        assert [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)] == [], symptom
        assert re.search(r"`(objective|train|model)\.\w+", change), symptom


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the group docs of pyproject.toml is not installed")
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, check=True, cwd=ROOT)
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        if page.name != "404.html":
            for link in re.findall(r'(?:href|src)="?([^"\s>]+)', text):
                target = link.split("#")[0].split("?")[0]
                if target and not re.match(r"\w+:", target):
                    assert (page.parent / target).exists(), (page.name, link)
        assert not re.search(r'<(?:script|link rel="?stylesheet|img)[^>]*(?:src|href)="?https?:', text), page.name
