"""Secrets, places and control characters stay where they are; text of strangers is text."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

import amd_plugin
from amd_plugin.busy import busy
from amd_plugin.errors import InputError
from amd_plugin.evaluate.report.report import write_report
from amd_plugin.evaluate.students import suite as suites
from amd_plugin.host import run
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.student.model_card import without_places
from amd_plugin.terminal import PlainConsole, tell
from tests.helpers.recipes import ON_THE_COMMAND_LINE

SECRETS = {name: f"planted-{name.lower()}-5f2c" for name in (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AMD_PLUGIN_VLM_KEY", "MLFLOW_TRACKING_PASSWORD",
    "MY_PASSWORD",
)}  # fmt: skip
ESCAPE = "\x1b]0;taken\x07\x1b[31m"
HTML = "<img src=x onerror=alert(1)>"


def holding(folder, words):
    """The files below `folder` that hold one of the `words`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files for word in words if word.encode() in path.read_bytes()]


def test_a_secret_of_the_environment_reaches_no_file_and_no_terminal(cli, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    printed = ""
    settings = [setting for setting in ON_THE_COMMAND_LINE if "trackers" not in setting]
    for command in (
        ("train", "modes2d", *settings, "--set=train.trackers=[tensorboard]", "--output", folder), ("evaluate", folder, "--samples", 40),
        ("report", folder), ("export", folder), ("doctor",), ("doctor", folder), ("plugins",),
    ):  # fmt: skip
        printed += cli(*command)[1]
    assert (folder / "report.html").is_file() and list(folder.rglob("events.*"))
    assert holding(tmp_path, SECRETS.values()) == []
    assert not any(value in printed for value in SECRETS.values())


def test_a_card_names_no_folder_of_this_machine(piped, plugins, tmp_path, pipeline_folder):
    recipe = piped("sdxl", objective="dmd")
    run.train(recipe, plugins, tmp_path / "run")
    here = [str(tmp_path.parents[1]), str(pipeline_folder("sdxl").parent), os.path.expanduser("~") + "/"]
    assert holding(tmp_path / "run" / "student", here) == []
    assert "sdxl-prompts.txt" not in here and "source: " in (tmp_path / "run" / "student" / "README.md").read_text()


@pytest.mark.parametrize(("value", "left"), [
    ("/home/me/models/sdxl/", "sdxl"), ("~/data/prompts.txt", "prompts.txt"), (r"C:\models\sdxl", "sdxl"), ("file:///data/x.csv", "x.csv"),
    ("owner/name", "owner/name"), ("https://server/v1", "https://server/v1"), ("/", ""), (3, 3),
])  # fmt: skip
def test_of_a_path_its_last_part_is_left(value, left):
    assert without_places({"a": [value]}) == {"a": [left]}


def test_a_report_shows_text_and_runs_none(tiny, plugins, tmp_path):
    folder = tmp_path / HTML.replace("/", "")
    run.train(tiny(), plugins, folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "recipe": HTML, "command": f"amd-plugin train {HTML}"}))
    (folder / "samples" / "prompts.json").write_text(json.dumps([HTML, "</script><script>alert(2)</script>"]))
    page = write_report([folder], tmp_path / "page.html", plugins).read_text()
    assert HTML not in page and "<script>alert(2)" not in page and "&lt;img src=x" in page


@pytest.mark.parametrize(
    "prompt", ["../../out", "a/b", "x" * 252, "\u00e9" * 130, "line\nend", "\x1b[31m", "\ud800", "\0", " "]
)
def test_a_prompt_that_is_no_file_name_is_refused(prompt, tmp_path):
    file = tmp_path / "vbench.json"
    file.write_text(json.dumps([{"prompt_en": prompt, "dimension": ["color"]}]))
    with pytest.raises(InputError, match="entry 1"):
        suites.read(file, "vbench")


class Rude:
    """A plugin whose messages try to take the terminal."""

    @amd_plugin.hookimpl
    def distill_rewards(self):
        def rude(media, prompts):
            raise ValueError(f"no {ESCAPE} score")

        return {"rude": lambda: rude}


def test_no_message_moves_the_terminal(cli, tmp_path, plugins, monkeypatch):
    plugins.register(Rude())
    monkeypatch.setattr("amd_plugin.cli.get_plugin_manager", lambda: plugins)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('data: {task: "modes\\e[31m2d"}\n"\\e]0;key": 1\n')
    for command in (
        ("recipes", "validate", recipe), ("train", recipe), ("report", tmp_path / f"no{ESCAPE}"),
        ("train", "modes2d", *ON_THE_COMMAND_LINE, "--set=rewards=[{name: rude}]", "--output", tmp_path / "run"),
    ):  # fmt: skip
        code, printed = cli(*command)
        assert code in (1, 2) and "\x1b" not in printed and "\x07" not in printed and "\\x1b" in printed, printed


@pytest.mark.parametrize("text", ["long.yaml:100:3: unknown key", "runs/:key:/a", "clip[/b32]", "[bold]x[link=http://a]"])
@pytest.mark.parametrize("console", [PlainConsole, Console])
def test_brackets_and_colons_are_shown_as_they_are(text, console):
    """A line number between colons is the name of an emoji, a name in brackets is markup, and what closes none ends a run."""
    written = io.StringIO()
    on = console(file=written, width=200)
    tell(on, text)
    if console is PlainConsole:
        on.print(text)
        table = Table(title=text)
        table.add_column(text)
        table.add_row(text)
        on.print(table)
    assert written.getvalue().count(text) == (5 if console is PlainConsole else 1)


@pytest.mark.parametrize("terminal", ["xterm", "dumb", ""])
def test_a_run_shows_names_and_work_with_brackets_and_colons(terminal, tmp_path):
    """Also on a terminal that takes lines alone, as in Emacs, where rich draws neither bars nor spinners: it was silent."""
    name, written = "clip[/b32]:100:", io.StringIO()
    console = Console(file=written, width=300, force_terminal=bool(terminal), _environ={"TERM": terminal})
    with busy(console, name):
        pass
    log = RunLog(tmp_path / "metrics.jsonl", 0, 1, Accelerator(cpu=True), console)
    log.show_held_out({name: 0.5})
    log.add({f"reward/{name}": torch.tensor(0.25)})
    with log.pausing(f"judging with {name}"):
        pass
    log.write(1)
    log.close()
    said = written.getvalue()
    assert f"{name} 0.25" in said and f"{name} 0.5" in said and said.count(name) >= 3


def test_nobody_reads_any_more(tmp_path):
    """As after ``| head``: rich would end the process there, and a run with it."""
    reader, writer = os.pipe()
    os.close(reader)
    console = PlainConsole(file=open(writer, "w"))
    with pytest.raises(BrokenPipeError):
        console.print("one")
    console.print("two")
    console.file.close()


def test_a_terminal_of_ascii_and_a_working_folder_that_is_gone(tmp_path):
    (tmp_path / "h\u00e9.yaml").write_text("data: {task: h\u00e9}\n", encoding="utf-8")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$1"; shift; exec "$@"'
    command = [sys.executable, "-m", "amd_plugin", "recipes", "validate", str(tmp_path / "h\u00e9.yaml")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ascii_only = subprocess.run(command, capture_output=True, env=environment)
    assert ascii_only.returncode == 2 and b"Traceback" not in ascii_only.stderr and b"\\xe9" in ascii_only.stderr
    lost = subprocess.run(["sh", "-c", script, "sh", str(gone), *command], cwd=gone, capture_output=True, env=environment)
    assert lost.returncode == 2 and b"Traceback" not in lost.stderr and b"working folder does not exist" in lost.stderr


@pytest.mark.parametrize("change", [
    {"_class_name": ["pipeline", "MyPipeline"]}, {"_class_name": 5}, {"text_encoder": ["my_code", "MyEncoder"]},
    {"unet": "UNet2DConditionModel"}, {"scheduler": ["diffusers"]}, {"vae": [1, 2]}, [],
])  # fmt: skip
def test_a_pipeline_of_custom_classes_is_refused(change, piped, tmp_path, pipeline_folder, plugins):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder("sdxl"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **change} if change else change))
    with pytest.raises(InputError, match=r"model\.path"):
        run.train(piped("sdxl", f"model.path={folder}", objective="dmd"), plugins, tmp_path / "run")


def test_lines_stay_whole_where_they_go_to_a_file(tmp_path):
    line = "step 10/300  " + "frechet 56.9  " * 20
    with open(tmp_path / "log", "w") as file:
        PlainConsole(file=file, width=40).print(line)
    assert (tmp_path / "log").read_text().splitlines() == [line]
