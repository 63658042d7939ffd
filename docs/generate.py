"""Rewrites what docs take from elsewhere: options, the command line, the schema of recipes, README's results: ``make docs``.

A table stands between ``<!-- options: amd regime -->`` and ``<!-- end -->``: an objective, and a group of options. README's
results stand between ``<!-- results -->`` and ``<!-- end -->``, and come from the numbers in docs/results. The table of what
hosts offer stands after ``<!-- offers -->``, and the keys of recipes after ``<!-- keys: sections -->``, tasks and rewards.
"""

import inspect
import json
import re
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from amd_plugin import config
from amd_plugin.adapters import offers
from amd_plugin.cli import app
from amd_plugin.default_plugins import amd, host
from amd_plugin.evaluate.comparison.result import Comparison
from amd_plugin.evaluate.directions import ARROWS
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions
from amd_plugin.option_tables import keys, table
from amd_plugin.options import options_model
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.copying import SCHEMA
from amd_plugin.recipe.schema import recipe_schema
from amd_plugin.tasks import TASKS

MODELS = {"amd": AMDOptions, "dmd": DMDOptions, "dmd2": DMD2Options, "decoupled_dmd": DecoupledDMDOptions}
ROOT = Path(__file__).parents[1]
# What README shows: study, its words, metrics.
SHOWN = (
    ("plane_unreliable", "plane", ("precision", "tv")),
    ("plane_reliable", "plane, reliable teacher", ("sliced_wasserstein",)),
    ("digits_unreliable", "digits", ("frechet", "accuracy", "recall")),
    ("video", "video", ("frechet", "digit_accuracy")),
    ("scenes_advantage_gradient", "scenes", ("score", "frechet")),
)
SECTIONS = {
    "`model`": config.ModelConfig, "`model.teacher`": config.TeacherConfig, "`model.lora`": config.LoraConfig,
    "`model.teacher_lora`, `model.student_lora`, `model.fake_score_lora`": config.LoraFile, "`data`": config.DataConfig,
    "`objective`": config.ObjectiveConfig, "`rewards`": config.RewardConfig, "`train`": config.TrainConfig,
    "`evaluate`": config.EvaluateConfig, "`evaluate.features`": config.FeaturesConfig,
    "`distributed`": config.DistributedConfig,
}  # fmt: skip
OFFERED = re.compile(r"(<!-- offers -->\n).*?(<!-- end -->)", re.DOTALL)
KEYS = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MARKED = re.compile(r"(<!-- options: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its tables as the declarations have them."""
    text = OFFERED.sub(lambda m: f"{m[1]}{offers.table()}\n{m[2]}", text)
    text = KEYS.sub(lambda m: f"{m[1]}\n{keys_of(m[2])}\n\n{m[3]}", text)
    return MARKED.sub(lambda m: f"{m[1]}{table(MODELS[m[2]], m[3])}\n{m[4]}", text)


def keys_of(what: str) -> str:
    """A heading and a table of keys for each of a recipe's sections, of our tasks or of our rewards."""
    if what == "sections":
        parts = {name: f"{inspect.getdoc(model)}\n\n{keys(model)}" for name, model in SECTIONS.items()}
    else:
        factories, ignored = (TASKS, ()) if what == "tasks" else (own_plugins().rewards(), config.REWARD_CONTEXT)
        models = {name: options_model(factory, ignore=ignored) for name, factory in sorted(factories.items())}
        parts = {f"`{name}`": keys(model, factories[name]) for name, model in models.items() if model.model_fields}
    return "\n\n".join(f"### {heading}\n\n{text}" for heading, text in parts.items())


def own_plugins() -> PluginManager:
    """The package's own plugins alone."""
    manager = PluginManager()
    for plugin in (host, amd):
        manager.register(plugin)
    return manager


def results() -> str:
    """README's table: DMD at the guidance scale that is best for a task's first metric, beside AMD at the recipe's own."""
    lines = ["| task | metric | DMD, tuned | AMD | seeds won |", "|---|---|---|---|---|"]
    for study, words, metrics in SHOWN:
        comparison = Comparison.from_file(ROOT / "docs" / "results" / f"{study}.json")
        best = comparison.best_tuned(metrics[0])
        for metric in metrics:
            wins = comparison.paired("amd", best, metric).wins
            dmd, amd_mean = (f"{comparison.mean(arm, metric):.3f}" for arm in (best, "amd"))
            name = f"{metric} {ARROWS[comparison.better[metric]]}"
            lines.append(f"| {words} | {name} | {dmd} | {amd_mean} | {wins}/{len(comparison.seeds)} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    """README's `text` with its results as docs/results has them."""
    return re.sub(r"(<!-- results -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{results()}\n{m[2]}", text, flags=re.DOTALL)


def schema() -> str:
    """The schema of recipes that come with the package, with the package's own plugins alone."""
    return json.dumps(recipe_schema(own_plugins()), indent=1) + "\n"


def command_line() -> str:
    """The page of all commands, in typer's own form of their help."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="amd-plugin")
    return get_docs_for_click(obj=command, ctx=context, name="amd-plugin", title="Command line").strip() + "\n"


def main() -> None:
    """Rewrites all pages and the schema; with ``--check`` names those that would change and ends with 1."""
    stale = []
    docs, front = ROOT / "docs", ROOT / "README.md"
    whole = {ROOT / "recipes" / SCHEMA: schema(), docs / "cli.md": command_line(), front: readme(front.read_text())}
    for file, text in whole.items():
        if not file.is_file() or file.read_text() != text:
            stale.append(file.name)
            if "--check" not in sys.argv:
                file.write_text(text)
    for page in sorted(docs.glob("*.md")):
        text = page.read_text()
        if (new := generated(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        sys.exit(f"run make docs: {', '.join(stale)} is not what the declared options and the results say")


if __name__ == "__main__":
    main()
