"""The `amd-plugin` command. Errors come without a traceback unless AMD_PLUGIN_DEBUG is set; exit codes are in `errors`."""

from __future__ import annotations

import json
import logging
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from amd_plugin.errors import AmdPluginError, InputError, MissingDependency, did_you_mean

app = typer.Typer(
    name="amd-plugin", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Adaptive Matching Distillation: reward-aware distillation of diffusion models into few-step generators.",
)  # fmt: skip
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with the package, and checking one's own.")
app.add_typer(recipes_app, name="recipes")

out = Console()
err = Console(stderr=True)

RecipeName = Annotated[str, typer.Argument(help="a shipped recipe's name or a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one value, e.g. train.max_steps=100")
]


class Weights(str, Enum):
    """Which of the student's."""

    EMA = "ema"
    RAW = "raw"


class Format(str, Enum):
    """Of an exported student."""

    AUTO = "auto"
    FULL = "full"
    LORA = "lora"


class PromptFormat(str, Enum):
    """Of a prompt file."""

    AUTO = "auto"
    PLAIN = "plain"
    GENEVAL = "geneval"
    HPDV2 = "hpdv2"
    VBENCH = "vbench"


@app.command()
def train(
    recipe: RecipeName,
    objective: Annotated[str | None, typer.Option(help="objective to use instead of the recipe's")] = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="the run's folder [default: runs/RECIPE-OBJECTIVE]")] = None,
    resume: Annotated[str | None, typer.Option(metavar="auto|PATH", help="go on from a checkpoint")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what would happen, stop")] = False,
) -> None:
    """Distil a student as a recipe says."""
    from amd_plugin import recipe as recipes
    from amd_plugin.host import run
    from amd_plugin.plugins import get_plugin_manager

    plugins = get_plugin_manager()
    loaded = recipes.load(recipe, plugins, overrides or (), objective)
    name = loaded.config.objective.name
    folder = output or Path("runs") / f"{loaded.name}-{name}"
    main = int(os.environ.get("RANK", 0)) == 0
    if loaded.unused_options and main:
        out.print(f"objective {name} does not take {', '.join(loaded.unused_options)}; not used", highlight=False)
    if dry_run:
        for what, value in run.dry_run(loaded, plugins, folder, resume).items():
            out.print(f"{what}: {value}", highlight=False, markup=False, soft_wrap=True)
        return
    evaluation = run.train(loaded, plugins, folder, resume, out if main else None)
    if main:
        from amd_plugin.evaluate.report.report import write_report
        from amd_plugin.tasks import TASKS

        config = loaded.config
        judges = [m for m in evaluation if m in config.evaluate.held_out or m not in TASKS[config.data.task].metrics]
        held_out = {name: evaluation[name] for name in judges}
        out.print("held out: " + "  ".join(f"{k} {v:.4g}" for k, v in held_out.items()), highlight=False)
        out.print(f"report: {write_report([folder], folder / 'report.html')}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def compare(
    recipe: RecipeName,
    objectives: Annotated[str, typer.Option(help="comma-separated objectives or arms; the first is the baseline")] = "dmd,amd",
    seeds: Annotated[str, typer.Option(help="how many seeds, or a comma-separated list of them")] = "4",
    ablate: Annotated[bool, typer.Option("--ablate", help="add AMD's parts and its control arms")] = False,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="also run every arm with each value of a key, and each of another"),
    ] = None,
    select_seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="choose every arm's best tuning on these seeds, apart from --seeds")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=OBJECTIVE K=V K=V", help="an arm of your own: objective and overrides")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="the comparison's folder [default: runs/compare-RECIPE]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes [default: one per core]")] = None,
) -> None:
    """Run objectives x seeds, pair the seeds, and write a table and a report."""
    from amd_plugin import recipe as recipes
    from amd_plugin.evaluate.comparison import compare as comparison
    from amd_plugin.evaluate.report.report import write_report
    from amd_plugin.plugins import get_plugin_manager

    if select_seeds is not None and not tune:
        raise InputError("--select-seeds: there is nothing to choose; name what to tune with --tune")
    rewards = recipes.load(recipe, get_plugin_manager(), overrides or ()).config.rewards
    arms = comparison.arms(objectives.split(","), rewards, ablate=ablate, tune=tune or (), more=arm or ())
    folder = output or Path("runs") / f"compare-{Path(recipe).stem}"
    result = comparison.compare(
        recipe, arms, comparison.parse_seeds(seeds), overrides or (), folder, workers=workers, console=out,
        select=() if select_seeds is None else comparison.parse_seeds(select_seeds, "--select-seeds"),
    )  # fmt: skip
    out.print(result)
    out.print(f"table: {folder / 'compare.md'}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"report: {write_report([folder], folder / 'report.html')}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    checkpoint: Annotated[str | None, typer.Option(metavar="STEP|PATH", help="which one [default: the newest]")] = None,
    weights: Annotated[Weights, typer.Option(help="the student's average, or its weights as trained")] = Weights.EMA,
    samples: Annotated[int | None, typer.Option(min=1, help="how many [default: the recipe's, or all of the file]")] = None,
    prompts: Annotated[Path | None, typer.Option(help="prompts to ask for instead: a plain file or a benchmark's")] = None,
    format: Annotated[PromptFormat, typer.Option(help="of that file")] = PromptFormat.AUTO,
    teacher: Annotated[bool, typer.Option(help="also draw the teacher's samples, to compare with")] = True,
    output: Annotated[Path | None, typer.Option(help="the folder to write [default: RUN/evaluation]")] = None,
) -> None:
    """Judge a run's student: rewards, distances, diversity, alignment, motion, with confidence intervals."""
    from amd_plugin.evaluate.students.evaluation import evaluate as judge
    from amd_plugin.plugins import get_plugin_manager

    result = judge(
        run, get_plugin_manager(), output, at=checkpoint, weights=weights.value, samples=samples, prompts=prompts,
        form=format.value, teacher=teacher, console=out,
    )  # fmt: skip
    for row in result.rows:
        interval = "" if row["low"] is None else f"  [{row['low']:.4g}, {row['high']:.4g}]"
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        out.print(f"{row['name']}: {value}{interval}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"evaluation: {result.latents.parent / 'evaluation.md'}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plan(
    recipe: RecipeName,
    gpus: Annotated[int, typer.Option(help="how many")],
    gpu_memory: Annotated[float, typer.Option(metavar="GB", help="of each")] = 80.0,
    tflops: Annotated[float, typer.Option(help="10^12 operations a second of each [default: an H100's]")] = 989.0,
    bandwidth: Annotated[float, typer.Option(metavar="GB/S", help="into each from the others")] = 450.0,
    hbm: Annotated[float, typer.Option(metavar="GB/S", help="of each GPU's own memory")] = 3350.0,
    objective: Annotated[str | None, typer.Option(help="objective to use instead of the recipe's")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, in bytes, operations and seconds")] = False,
) -> None:
    """Say what a recipe needs of every GPU, and what to change if it does not fit; exits with 0 either way."""
    from amd_plugin import plan as planning
    from amd_plugin import recipe as recipes
    from amd_plugin.plan.traffic import Machine
    from amd_plugin.plugins import get_plugin_manager

    for name, value in (("--gpu-memory", gpu_memory), ("--tflops", tflops), ("--bandwidth", bandwidth), ("--hbm", hbm)):
        if not 0 < value < 1e9:
            raise InputError(f"{name}: must be a positive number, got {value:g}")
    plugins, given = get_plugin_manager(), list(overrides or ())
    found = planning.plan_with_changes(
        lambda more: recipes.load(recipe, plugins, [*given, *more], objective),
        plugins, gpus, int(gpu_memory * 1e9), Machine(tflops, bandwidth, hbm),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        out.print(planning.show(found), highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs or comparisons")],
    output: Annotated[Path | None, typer.Option(help="the HTML file [default: report.html in the first folder]")] = None,
) -> None:
    """Write one self-contained HTML report on runs and comparisons."""
    from amd_plugin.evaluate.report.report import write_report

    path = write_report(runs, output or runs[0] / "report.html")
    out.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="the run's folder")],
    checkpoint: Annotated[str | None, typer.Option(metavar="STEP|PATH", help="which one [default: the newest]")] = None,
    weights: Annotated[Weights, typer.Option(help="the student's average, or its weights as trained")] = Weights.EMA,
    format: Annotated[
        Format,
        typer.Option(help="the whole pipeline, the adapter alone, or the pipeline with an adapter beside it if there is one"),
    ] = Format.AUTO,
    output: Annotated[Path | None, typer.Option(help="the folder to write [default: RUN/student]")] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="then upload it to the hub")] = None,
    public: Annotated[bool, typer.Option("--public", help="make a new hub repository public, not private")] = False,
) -> None:
    """Write a checkpoint's student as a diffusers folder; can be repeated."""
    from amd_plugin.host.student.export import export_run, push
    from amd_plugin.plugins import get_plugin_manager

    folder = export_run(run, get_plugin_manager(), output, at=checkpoint, weights=weights.value, how=format.value)
    out.print(f"student: {folder}", highlight=False, markup=False, soft_wrap=True)
    if push_to_hub is not None:
        out.print(f"hub: {push(folder, push_to_hub, private=not public)}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List plugins: what they provide, and why those that failed did so."""
    from amd_plugin.plugins import get_plugin_manager

    manager = get_plugin_manager()
    found = {"objectives": manager.objectives(), "rewards": manager.rewards(), "families": manager.families()}
    shown = ("name", "distribution", "status", "hooks", "cause")
    rows = [{column: getattr(status, column) for column in shown} for status in manager.statuses.values()]
    if as_json:
        typer.echo(json.dumps({"plugins": rows, **{kind: sorted(names) for kind, names in found.items()}}, indent=1))
        return
    for row in rows:
        origin = f" ({row['distribution']})" if row["distribution"] else ""
        out.print(f"{row['name']}{origin}: {row['status']}", highlight=False, markup=False, soft_wrap=True)
        if row["hooks"]:
            out.print(f"    hooks: {', '.join(row['hooks'])}", highlight=False, markup=False, soft_wrap=True)
        if row["cause"]:
            out.print(f"    cause: {row['cause']}", highlight=False, markup=False, soft_wrap=True)
    for kind, names in found.items():
        out.print(f"{kind}: {', '.join(sorted(names))}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """Look at versions, devices, plugins, cache and hub, to be pasted into a bug report; exits with 1 if something is wrong."""
    from amd_plugin.doctor import examine
    from amd_plugin.plugins import get_plugin_manager

    findings = examine(get_plugin_manager())
    for finding in findings:
        mark = "" if finding.ok else "PROBLEM: "
        out.print(f"{finding.what}: {mark}{finding.found}", highlight=False, markup=False, soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def host(
    name: Annotated[str, typer.Argument(help="fastvideo, or fastgen")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="-- ARGUMENTS", help="the host's own, after a --")] = None,
    objective: Annotated[str, typer.Option(help="what to train with there")] = "amd",
) -> None:
    """Run another toolkit's trainer with AMD in it: amd-plugin host fastvideo -- --config run.yaml."""
    from importlib import import_module

    hosts = ("fastvideo", "fastgen")
    if name not in hosts:
        in_code = {"modelopt": " ModelOpt is a library: use amd_plugin.adapters.modelopt.AMDPipeline in your own loop."}
        raise InputError(f"host: one of {', '.join(hosts)}, got '{name}'.{in_code.get(name, did_you_mean(name, hosts))}")
    import_module(f"amd_plugin.adapters.{name}").launch(arguments or [], objective)


@recipes_app.command("list")
def list_recipes() -> None:
    """Names and purposes of the shipped recipes."""
    from amd_plugin import recipe as recipes

    for name, path in recipes.shipped().items():
        purpose = path.read_text().splitlines()[0].lstrip("# ")
        out.print(f"{name}: {purpose}", highlight=False, markup=False, soft_wrap=True)


@recipes_app.command()
def show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe with all its defaults, as a run would use it."""
    from amd_plugin import recipe as recipes
    from amd_plugin.plugins import get_plugin_manager

    typer.echo(recipes.load(recipe, get_plugin_manager(), overrides or ()).as_yaml(), nl=False)


@recipes_app.command()
def copy(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Argument(help="file to write [default: RECIPE.yaml here]")] = None,
) -> None:
    """Copy a shipped recipe, to be edited, and the launch scripts that it names."""
    from amd_plugin import recipe as recipes

    source = recipes.find(recipe)
    target = to or Path(source.name)
    if target.is_dir():
        target = target / source.name
    # Scripts that a recipe's header names go with it.
    launch = source.parent / "launch"
    copies = {source: target}
    if "launch/" in source.read_text() and launch.is_dir():
        copies |= {file: target.parent / "launch" / file.name for file in sorted(launch.iterdir()) if file.is_file()}
    for path in copies.values():
        if path.exists():
            raise InputError(f"{path}: exists already; nothing was touched")
    for file, path in copies.items():
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(file.read_text())
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error}") from error
        out.print(f"{path}", highlight=False, markup=False, soft_wrap=True)


@recipes_app.command()
def validate(
    paths: Annotated[list[str], typer.Argument(help="names or YAML files")],
    overrides: Overrides = None,
) -> None:
    """Check recipes; prints every problem with its line."""
    from amd_plugin import recipe as recipes
    from amd_plugin.plugins import get_plugin_manager

    manager = get_plugin_manager()
    problems = []
    for path in paths:
        try:
            recipes.load(path, manager, overrides or ())
            out.print(f"{path}: ok", highlight=False, markup=False, soft_wrap=True)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


@recipes_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from amd_plugin.config import RecipeConfig

    typer.echo(json.dumps(RecipeConfig.model_json_schema(), indent=1))


def main() -> None:
    """Runs the command line; turns the package's own errors into a message and an exit code."""
    # deepspeed and torch announce missing accelerators at import; nobody running on a CPU needs to hear it twice.
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False, show_time=False)]
    )
    try:
        app()
    except AmdPluginError as error:
        if os.environ.get("AMD_PLUGIN_DEBUG"):
            raise
        err.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        cause = error.__cause__
        if cause is not None and not isinstance(cause, AmdPluginError):
            err.print("(set AMD_PLUGIN_DEBUG=1 for the traceback)", highlight=False)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if os.environ.get("AMD_PLUGIN_DEBUG"):
            raise
        err.print(f"error: {error}. Install it, or the extra of amd-plugin that brings it", style="red", soft_wrap=True)
        sys.exit(MissingDependency.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted", style="red")
        sys.exit(130)


if __name__ == "__main__":
    main()
