"""The `amd-plugin` command. Errors are printed without a traceback unless AMD_PLUGIN_DEBUG is set; `errors` has exit codes.

Commands import themselves what imports torch, so that help, lists and typos do not wait for it. All of them stand in this one
file, above 300 lines, since they are short and share their options.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer
from rich.console import RenderableType
from rich.measure import Measurement
from rich.table import Table

from amd_plugin import __version__, disk, interrupts, plugin_files
from amd_plugin import recipe as recipes
from amd_plugin.busy import busy
from amd_plugin.choices import PromptFormat, StudentFormat, Weights
from amd_plugin.config import MOST_SAMPLES
from amd_plugin.errors import AmdPluginError, InputError, MissingDependency, did_you_mean, printable
from amd_plugin.host.running import folder_kind
from amd_plugin.launcher import launcher_number
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe.keys_as_options import TakesSet
from amd_plugin.terminal import PlainConsole, check_working_folder, log_to, take_any_text

# Rich's table of options cuts their names on a narrow terminal, and click's plain text does not.
MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 72 else None
HELP = {"help_option_names": ["-h", "--help"]}
RUNS, RESULTS, HERE = "Before and during a run", "What a run has made", "What is installed here"
app = typer.Typer(
    name="amd-plugin", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=HELP, rich_markup_mode=MARKUP,
    help="Adaptive Matching Distillation: reward-aware distillation of diffusion models into few-step generators.",
    epilog="First steps: amd-plugin recipes list, then amd-plugin train modes2d",
)  # fmt: skip
recipes_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=MARKUP, help="List, show, copy and check recipes, which say what is trained and how."
)
app.add_typer(recipes_app, name="recipes", rich_help_panel=RUNS)

READING = "reading the recipe and its data"  # which may be a large file, or on the hub

out = PlainConsole()
err = PlainConsole(stderr=True)


def _existing(recipe: str | None) -> str | None:
    """Finds a typo in a recipe's name before anything is imported that takes seconds."""
    if recipe is not None:
        recipes.find(recipe)
    return recipe


def _names() -> list[str]:
    return list(recipes.shipped())


RecipeName = Annotated[
    str,
    typer.Argument(help="name of a shipped recipe, or path of a YAML file", callback=_existing, autocompletion=_names),
]


def _loaded(files: list[Path] | None) -> list[Path] | None:
    plugin_files.add(files or ())
    return files


PluginFiles = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="file with rewards, objectives or samplers of your own", callback=_loaded),
]
RunFolder = Annotated[Path, typer.Argument(help="folder of the run")]
Objective = Annotated[str | None, typer.Option(help="objective to use instead of the recipe's")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override of one value, e.g. train.max_steps=100")
]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="STEP|PATH", help="step or folder of the checkpoint", show_default="the newest")
]
StudentWeights = Annotated[Weights, typer.Option(help="weights of the student: its moving average (ema), or as trained (raw)")]
_result: list[TextIO] = []  # standard output, while all else that is printed goes to standard error


def _alone(context: typer.Context, wanted: bool) -> bool:
    """Keeps standard output for the result, so that it is JSON: what plugins and libraries print goes to standard error."""
    if wanted:
        _result.append(sys.stdout)
        context.call_on_close(_result.pop)
        context.with_resource(redirect_stdout(sys.stderr))
    return wanted


def _give(result: str) -> None:
    """Prints the result of ``--json``."""
    typer.echo(result, file=_result[-1])


AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output", callback=_alone)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"amd-plugin {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Adaptive Matching Distillation: reward-aware distillation of diffusion models into few-step generators."""


def say(text: RenderableType) -> None:
    """Prints one result as it is, without wrapping it: it may be a path, or piped to another program."""
    out.print(text, soft_wrap=True)


def show_whole(table: Table) -> None:
    """Prints a table without cutting a name: as wide as it is where it is piped, row by row where a terminal is too narrow."""
    room = out.width if out.is_terminal else 10_000
    if Measurement.get(out, out.options.update_width(10_000), table).maximum <= room:
        (out if out.is_terminal else PlainConsole(file=out.file, width=room)).print(table)
        return
    head, *columns = table.columns
    say(str(table.title))
    for row, name in enumerate(head.cells):
        say(str(name))
        for column in columns:
            say(f"  {column.header}: {list(column.cells)[row]}" if column.header else f"  {list(column.cells)[row]}")
    if table.caption:
        say(str(table.caption))


@app.command(
    cls=TakesSet, rich_help_panel=RUNS, epilog="Example: amd-plugin train digits --set train.max_steps=500 --output runs/mine"
)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="name of a shipped recipe, or path of a YAML file; with --resume, the run's own",
            callback=_existing,
            autocompletion=_names,
        ),
    ] = None,
    objective: Objective = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the run", show_default="runs/RECIPE-OBJECTIVE")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto|CHECKPOINT",
            help="run to go on with, from its newest checkpoint; or auto, for the run in --output; or a checkpoint's folder",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check of recipe, folder, trackers and model; reads no weights")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --dry-run: machine-readable output", callback=_alone)] = False,
    plugin: PluginFiles = None,
) -> None:
    """Distil a student as described by a recipe."""
    if as_json and not dry_run:
        raise InputError("--json: only for --dry-run; a run writes its numbers to metrics.jsonl and evaluation.json")
    if recipe is None:
        folder_kind.continued(resume, output)
    elif resume not in (None, "auto") and not Path(resume).is_dir():
        raise InputError(f"--resume {resume}: there is no such folder. Name a run, a checkpoint's folder, or auto")
    is_main, plugins = launcher_number("RANK", 0) == 0, get_plugin_manager()
    with busy(err if is_main else None, READING, at_once=False):
        from amd_plugin.host.running.recipe_changes import changes_of_result, results
        from amd_plugin.host.running.start import start_of

        loaded, folder, resume = start_of(recipe, overrides or (), objective, output, resume, plugins)
    if loaded.unused_options and is_main and not as_json:
        say(f"objective {loaded.config.objective.name} does not take {', '.join(loaded.unused_options)}; not used")
    if dry_run:
        from amd_plugin.host.running.dry_run import dry_run as describe_run

        with busy(err, "checking the run", at_once=False):
            described = describe_run(loaded, plugins, folder, resume, named=output is not None)
        if as_json:
            _give(json.dumps(described, indent=1))
        else:
            for key, value in described.items():
                say(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")  # as a recipe has it
        return
    if resume == "auto" and results(folder) is not None and not changes_of_result(folder, loaded):
        if is_main:
            longer = "train longer with --set train.max_steps=N"
            say(f"{folder}: this run is finished, after {loaded.config.train.max_steps} steps; {longer}")
            say(f"student: {folder / 'student'}")
        return
    from amd_plugin.host import run  # after all that can be wrong with the input: it takes seconds

    evaluation = run.train(loaded, plugins, folder, resume, out if is_main else None)
    if is_main:
        from amd_plugin.evaluate.report.report import write_report
        from amd_plugin.host.evaluation.held_out import held_out_names

        judges = held_out_names(loaded.config, evaluation)
        say("held out: " + "  ".join(f"{judge} {evaluation[judge]:.4g}" for judge in judges))
        page = folder / "report.html"
        with (
            busy(out, "writing the report"),
            disk.dispensable(page, f"the run is complete; later: {plugin_files.command('report', folder)}"),
        ):
            say(f"report: {write_report([folder], page, plugins)}")
        say(f"student: {folder / 'student'}, a diffusers folder; its README.md shows how to call it")
        say(f"next: {plugin_files.command('evaluate', folder)}")


def _agreed(question: str) -> bool:
    """The answer to a question; a signal there is a signal, which click takes for a refusal."""
    try:
        return typer.confirm(question)
    except typer.Abort as end:
        if signum := interrupts.received.signum:
            raise interrupts.Interrupted(signum) from end
        raise


@app.command(cls=TakesSet, rich_help_panel=RUNS, epilog="Example: amd-plugin compare digits --objectives dmd,amd --seeds 4")
def compare(
    recipe: RecipeName,
    objectives: Annotated[str, typer.Option(help="objectives or arms, comma-separated; the first is the baseline")] = "dmd,amd",
    seeds: Annotated[str, typer.Option(help="number of seeds, or the seeds themselves with commas: 3,5 or 5,")] = "4",
    ablate: Annotated[bool, typer.Option("--ablate", help="AMD's parts and the control arms as further arms")] = False,
    tune: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="key and values to tune every arm over; several keys make a grid"),
    ] = None,
    select_seeds: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="seeds that select every arm's best tuning, apart from --seeds")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=OBJECTIVE K=V K=V", help="further arm: its name, objective and overrides")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the comparison", show_default="runs/compare-RECIPE")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="number of worker processes", show_default="one per core, one per GPU for pipelines"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="start without confirmation, whatever the estimated duration")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="no report; amd-plugin report makes one of several")] = False,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
) -> None:
    """Run objectives x seeds, pair the seeds, and write a table and a report."""
    if select_seeds is not None and not tune:
        raise InputError("--select-seeds: there is nothing to choose; name what to tune with --tune")
    plugins = get_plugin_manager()
    with busy(err, READING, at_once=False):
        from amd_plugin.evaluate.comparison import compare as comparison
        from amd_plugin.evaluate.comparison.arms import arms, parse_seeds
        from amd_plugin.evaluate.comparison.tables import terminal_table

        rewards = recipes.load(recipe, plugins, overrides or ()).config.rewards
    chosen = arms(objectives.split(","), plugins, rewards, ablate=ablate, tune=tune or (), more=arm or ())
    folder = output or Path("runs") / f"compare-{Path(recipe).stem}"
    result = comparison.compare(
        recipe, chosen, parse_seeds(seeds), overrides or (), folder, plugins, workers=workers, console=err if as_json else out,
        agree=None if yes or not (out.is_terminal and sys.stdin.isatty()) else _agreed,
        select=() if select_seeds is None else parse_seeds(select_seeds, "--select-seeds"),
    )  # fmt: skip
    page = folder / "report.html"
    if not no_report:
        later = f"the comparison is complete; later: {plugin_files.command('report', folder)}"
        with busy(err if as_json else out, "writing the report"), disk.dispensable(page, later):
            from amd_plugin.evaluate.report.report import write_report

            write_report([folder], page, plugins)
    if as_json:
        _give(result.as_json())
        return
    show_whole(terminal_table(result))
    for what, path in (("table", folder / "compare.md"), ("report", None if no_report else page)):
        if path is not None and path.is_file():
            say(f"{what}: {path}")


@app.command(rich_help_panel=RESULTS, epilog="Example: amd-plugin evaluate runs/digits-amd --samples 1000")
def evaluate(
    run: RunFolder,
    checkpoint: Checkpoint = None,
    weights: StudentWeights = "ema",
    samples: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_SAMPLES, help="number of samples", show_default="the recipe's, or all of the prompt file"),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="prompt file to use instead of the run's own prompts: a plain file or a benchmark's")
    ] = None,
    format: Annotated[PromptFormat, typer.Option(help="format of the prompt file")] = "auto",
    teacher: Annotated[bool, typer.Option(help="whether to compare with samples of the teacher too")] = True,
    output: Annotated[Path | None, typer.Option(help="folder to write", show_default="RUN/evaluation")] = None,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
) -> None:
    """Measure a run's student: rewards, distances, diversity, alignment and motion, with confidence intervals."""
    folder_kind.check_run(run)
    if prompts is not None:
        folder_kind.check_exists(prompts, "--prompts ")
    from amd_plugin.evaluate.students.evaluation import evaluate as measure

    result = measure(
        run, get_plugin_manager(), output, at=checkpoint, weights=weights, samples=samples, prompts=prompts,
        form=format, teacher=teacher, console=err if as_json else out,
    )  # fmt: skip
    if as_json:
        _give((result.latents.parent / "evaluation.json").read_text(encoding="utf-8"))
        return
    for row in result.rows:
        interval = "" if row["low"] is None else f"  [{row['low']:.4g}, {row['high']:.4g}]"
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        say(f"{row['name']}: {value}{interval}")
    say(f"evaluation: {result.latents.parent / 'evaluation.md'}")


@app.command(cls=TakesSet, rich_help_panel=RUNS, epilog="Example: amd-plugin plan wan21_14b_zero3 --gpus 64")
def plan(
    recipe: RecipeName,
    gpus: Annotated[int, typer.Option(help="number of GPUs")],
    gpu_memory: Annotated[float, typer.Option(metavar="GB", help="memory per GPU")] = 80.0,
    tflops: Annotated[float, typer.Option(help="10^12 operations per second and GPU; the default is an H100's")] = 989.0,
    bandwidth: Annotated[float, typer.Option(metavar="GB/S", help="inter-GPU bandwidth into each GPU")] = 450.0,
    hbm: Annotated[float, typer.Option(metavar="GB/S", help="bandwidth of the memory on each GPU")] = 3350.0,
    objective: Objective = None,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="machine-readable output, in bytes, operations and seconds", callback=_alone)
    ] = False,
    plugin: PluginFiles = None,
) -> None:
    """Print what a recipe needs of every GPU, and what to change if it does not fit; exits with 0 either way."""
    from amd_plugin import plan as planning
    from amd_plugin.plan.traffic import Machine

    for name, value in (("--gpu-memory", gpu_memory), ("--tflops", tflops), ("--bandwidth", bandwidth), ("--hbm", hbm)):
        if not 0 < value < 1e9:
            raise InputError(f"{name}: must be a positive number, got {value:g}")
    plugins, given = get_plugin_manager(), list(overrides or ())

    def loaded(more: Sequence[str]) -> recipes.Recipe:
        if more:
            err.print(f"trying {' '.join(f'--set {change}' for change in more)}")
        return recipes.load(recipe, plugins, [*given, *more], objective)

    with busy(err, f"tracing the networks of {recipe} at true size, without weights; a minute for large ones that are new"):
        machine = Machine(tflops, bandwidth, hbm)
        needs = planning.plan_with_changes(loaded, plugins, gpus, int(gpu_memory * 1e9), machine)
    if as_json:
        _give(json.dumps(needs.as_dict(), indent=1))
    else:
        for part in planning.show(needs):
            say(part) if isinstance(part, str) else show_whole(part)


@app.command(rich_help_panel=RESULTS, epilog="Example: amd-plugin report runs/digits-amd runs/digits-dmd --output report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs or comparisons")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write", show_default="report.html in the first folder")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Write one self-contained HTML report on runs and comparisons."""
    from amd_plugin.evaluate.comparison.result import FILE

    for folder in runs:
        folder_kind.check_run(folder, comparison=FILE)
    if output is not None and output.is_dir():
        raise InputError(f"--output {output}: is a folder; name the file to write, such as {output / 'report.html'}")
    with busy(err, "writing the report"):
        from amd_plugin.evaluate.report.report import write_report

        page = write_report(runs, output or runs[0] / "report.html", get_plugin_manager())
    say(f"report: {page}")


@app.command(rich_help_panel=RESULTS, epilog="Example: amd-plugin export runs/digits-amd --weights raw --output student")
def export(
    run: RunFolder,
    checkpoint: Checkpoint = None,
    weights: StudentWeights = "ema",
    format: Annotated[
        StudentFormat,
        typer.Option(help="format of the export: pipeline (full), adapter (lora), or pipeline and any adapter (auto)"),
    ] = "auto",
    output: Annotated[Path | None, typer.Option(help="folder to write", show_default="RUN/student")] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="hub repository to upload to")] = None,
    public: Annotated[bool, typer.Option("--public", help="whether a new hub repository is public")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Write the student of a checkpoint as a diffusers folder. Can be repeated for other checkpoints."""
    folder_kind.check_run(run)
    with busy(err, "reading the checkpoint and writing the student"):
        from amd_plugin.host.student.export import export_run, push

        folder = export_run(run, get_plugin_manager(), output, at=checkpoint, weights=weights, how=format)
    say(f"student: {folder}")
    if push_to_hub is not None:
        with busy(err, f"uploading the student to {push_to_hub}"):
            address = push(folder, push_to_hub, private=not public)
        say(f"hub: {address}")


@app.command(cls=TakesSet, rich_help_panel=RESULTS, epilog="Example: amd-plugin replay runs/digits-amd/nonfinite/step-000120")
def replay(
    dump: Annotated[Path, typer.Argument(help="folder of an update that was not finite")],
    overrides: Overrides = None,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
) -> None:
    """Repeat an update that was NaN or infinite, and say what is so first: reward, teacher, fake score, direction, loss."""
    folder_kind.check_dump(dump)
    with busy(err, "preparing the networks of the run"):
        from amd_plugin.host.running.replay import replay as repeat

        found = repeat(dump, get_plugin_manager(), overrides or ())
    if as_json:
        _give(found.as_json())
        return
    for line in found.lines():
        say(line)


@app.command(rich_help_panel=HERE, epilog="Example: amd-plugin plugins --plugin my_reward.py")
def plugins(
    as_json: AsJson = False,
    plugin: PluginFiles = None,
) -> None:
    """List plugins, what they provide, and the cause of each failure."""
    manager = get_plugin_manager()
    provided = {
        "objectives": sorted(manager.objectives()),
        "rewards": sorted(manager.rewards()),
        "families": sorted(manager.families()),
    }
    columns = ("name", "distribution", "status", "hooks", "cause")
    rows = [{column: getattr(status, column) for column in columns} for status in manager.statuses.values()]
    if as_json:
        _give(json.dumps({"plugins": rows, **provided}, indent=1))
        return
    for row in rows:
        origin = f" ({row['distribution']})" if row["distribution"] else ""
        say(f"{row['name']}{origin}: {row['status']}")
        if row["hooks"]:
            say(f"    hooks: {', '.join(row['hooks'])}")
        if row["cause"]:
            say(f"    cause: {row['cause']}")
    for kind, names in provided.items():
        say(f"{kind}: {', '.join(names)}")


@app.command(rich_help_panel=HERE, epilog="Examples: amd-plugin doctor, amd-plugin doctor runs/digits-amd")
def doctor(
    run: Annotated[Path | None, typer.Argument(help="folder of a run, to verify its files instead")] = None,
    as_json: AsJson = False,
    plugin: PluginFiles = None,
) -> None:
    """Check versions, devices, plugins, cache and hub, or the files of a run; exits with 1 if something is wrong."""
    if run is not None and not run.is_dir():
        raise InputError(f"{run}: there is no such folder")
    with redirect_stdout(sys.stderr):  # DeepSpeed logs to standard output
        if run is None:
            from amd_plugin.doctor import examine

            findings = examine(get_plugin_manager())
        else:
            with busy(err, f"reading the files of {run}", at_once=False):
                from amd_plugin.host.running.run_check import examine_run

                findings = examine_run(run, get_plugin_manager())
    if as_json:
        _give(json.dumps([finding._asdict() for finding in findings], indent=1))
    for finding in [] if as_json else findings:
        mark = "" if finding.ok else "PROBLEM: "
        say(f"{finding.what}: {mark}{finding.found}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(
    rich_help_panel=RUNS, epilog="Examples: amd-plugin host fastvideo -- --config run.yaml; amd-plugin host new my_trainer"
)
def host(
    name: Annotated[str, typer.Argument(help="name of the toolkit: fastvideo, fastgen or lightx2v; or new")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- ARGUMENTS", help="arguments of the toolkit, after a --; after new, a name"),
    ] = None,
    objective: Annotated[str, typer.Option(help="objective to train with")] = "amd",
) -> None:
    """Run the trainer of another toolkit, FastVideo, FastGen or LightX2V, with AMD as its objective.

    host new NAME writes an adapter for another one, with its conformance tests, into the current folder.
    """
    from importlib import import_module

    if name == "new":
        write_new_adapter(arguments or [])
        return
    hosts = ("fastvideo", "fastgen", "lightx2v")
    if name not in hosts:
        in_code = {"modelopt": " ModelOpt is a library: use amd_plugin.adapters.modelopt.AMDPipeline in your own loop."}
        raise InputError(f"host: one of {', '.join(hosts)}, got '{name}'.{in_code.get(name, did_you_mean(name, hosts))}")
    if objective != "amd":
        raise InputError(f"--objective: must be 'amd' here, got '{objective}'. The toolkit's own objective needs no adapter")
    import_module(f"amd_plugin.adapters.{name}").launch(arguments or [])


def write_new_adapter(names: list[str]) -> None:
    """Writes an adapter for the one host that is named, and says what to do with it."""
    from amd_plugin.adapters.template import write_adapter

    if len(names) != 1:
        raise InputError(f"host new: needs one name, such as my_trainer, got {len(names)}")
    for file in write_adapter(names[0], Path()):
        say(f"wrote {file}")
    say(f"check it with: pytest --pyargs amd_plugin.testing --adapter {names[0]}_conformance:Adapter")


@recipes_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes and their purposes."""
    found = [{"name": name, "purpose": recipes.purpose(path), "file": str(path)} for name, path in recipes.shipped().items()]
    if as_json:
        _give(json.dumps(found, indent=1))
        return
    for row in found:
        out.print(f"{row['name']}: {row['purpose']}")  # a terminal wraps it between words


@recipes_app.command(cls=TakesSet, epilog="Example: amd-plugin recipes show digits --set train.max_steps=500")
def show(recipe: RecipeName, overrides: Overrides = None, plugin: PluginFiles = None) -> None:
    """Print a recipe with all its defaults, as a run would use it."""
    with busy(err, READING, at_once=False):
        loaded = recipes.load(recipe, get_plugin_manager(), overrides or ())
    typer.echo(loaded.as_yaml(), nl=False)


@recipes_app.command(epilog="Example: amd-plugin recipes copy digits mine.yaml")
def copy(
    recipe: RecipeName,
    to: Annotated[Path | None, typer.Argument(help="YAML file or folder to write to", show_default="RECIPE.yaml here")] = None,
) -> None:
    """Copy a shipped recipe for editing, with the launch scripts that it names."""
    for path in recipes.copy(recipe, to):
        say(str(path))


@recipes_app.command(cls=TakesSet, epilog="Example: amd-plugin recipes validate mine.yaml")
def validate(
    paths: Annotated[list[str], typer.Argument(help="names of shipped recipes, or paths of YAML files")],
    overrides: Overrides = None,
    plugin: PluginFiles = None,
) -> None:
    """Check recipes, and print every problem with its line."""
    manager = get_plugin_manager()
    problems = []
    for path in paths:
        try:
            with busy(err, READING, at_once=False):
                recipes.load(path, manager, overrides or ())
            say(f"{path}: ok")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))


@recipes_app.command(epilog="Example: amd-plugin recipes schema > recipe.schema.json")
def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    with busy(err, "reading the options of all plugins", at_once=False):
        from amd_plugin.recipe.schema import recipe_schema

        described = recipe_schema(get_plugin_manager())
    typer.echo(json.dumps(described, indent=1))


def _failure_under(end: BaseException | None) -> AmdPluginError | None:
    """The error that the command was ending with when the signal came: launchers end what a lost process has left of a run."""
    while end is not None and not isinstance(end, AmdPluginError):
        end = end.__context__
    return end


def _unusable(error: OSError) -> str:
    """What is wrong with a file or folder that is not as a command needs it: somebody else's, a loop of links, too long."""
    name = printable(os.fsdecode(error.filename))
    if error.errno == errno.ENAMETOOLONG:
        return f"{name[:60]}...: is too long for a name. Choose a shorter one"
    return f"{name}: cannot be used: {error.strerror}"


def _in_words(error: Exception) -> tuple[str, int, bool] | None:
    """(message, exit code, whether a traceback says more) of an error that the user can correct; None for a defect here."""
    if isinstance(error, AmdPluginError):
        cause = error.__cause__
        return str(error), error.exit_code, cause is not None and not isinstance(cause, AmdPluginError)
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Install it, or the extra of amd-plugin that brings it", MissingDependency.exit_code, False
    if (refused := disk.refusal(error)) is not None:
        safe = "Nothing is half written, and what was there is as it was"
        advice = f"{disk.remedy(refused)}, and give the same command again"
        return f"{disk.in_words(refused)}. {safe}. {advice}", 1, False
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return _unusable(error), InputError.exit_code, True
    return None


def _answered() -> None:
    """Runs the command; where a signal has ended it, in whatever way, says so in one line and exits with its code.

    Raises:
        AmdPluginError: the command's own, also where a signal came while the command was ending with it.
    """
    try:
        _set_up()
        app()
    except AmdPluginError:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as end:
        signum = interrupts.received.signum
        if not signum or (isinstance(end, SystemExit) and end.code != 130):
            raise
        if (failure := _failure_under(end)) is not None:
            raise failure from failure.__cause__
        with suppress(OSError):  # the terminal may be gone
            err.print(interrupts.WORDS[signal.Signals(signum)], style="red")
        sys.exit(128 + signum)


def _set_up() -> None:
    """Logging, text and the working folder, as all commands need them."""
    log_to(err)
    # It has a handler of its own, and a machine without a GPU is no reason to warn: doctor says whether there is one.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    take_any_text()
    threading.excepthook = disk.thread_failed
    check_working_folder()


def main() -> None:
    """Runs the command line, and turns the package's own errors into a message and an exit code."""
    interrupts.answer()
    try:
        _answered()
    except Exception as error:
        interrupts.ignore()
        if os.environ.get("AMD_PLUGIN_DEBUG") or (ending := _in_words(error)) is None:
            raise
        message, code, more = ending
        try:
            err.print(f"error: {message}", style="red", soft_wrap=True)
            if more:
                err.print("(set AMD_PLUGIN_DEBUG=1 for the traceback)")
        except OSError:  # the terminal is gone; what Python writes there at its end would change the exit code
            out.silence()
            err.silence()
        sys.exit(code)
    finally:
        interrupts.ignore()  # all is done: in Python's own last steps a signal would only be a traceback


if __name__ == "__main__":
    main()
