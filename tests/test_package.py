"""The package as it is installed: imports, layers, the wheel."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

import amd_plugin
from tests.helpers.commands import ends_of
from tests.helpers.recipes import ON_THE_COMMAND_LINE

ROOT = Path(__file__).parents[1]

# Floors, from the ground up: a place imports from floors below its own, and from itself. `host` and `evaluate` have wings, which
# are places of their own; so is every file and folder at the top.
FLOORS = [
    {"errors"},
    {
        "choices",
        "disk",
        "evaluate.colours",
        "evaluate.directions",
        "hookspecs",
        "imported",
        "interrupts",
        "launcher",
        "maths",
        "moved",
        "parent_watch",
        "process_settings",
        "randomness",
        "terminal",
    },
    {"atomic", "busy", "checksums", "json_files", "plugin_files", "threads"},
    {"cache", "contract", "metrics", "options"},
    {"config", "data", "objectives", "operators", "option_tables", "plugins", "schedule"},
    {"tasks"},
    {"models"},
    {"recipe", "rewards", "sharding", "doctor", "host.checkpoint"},
    {"default_plugins", "plan", "host.training"},
    {"host.running"},
    {"host.evaluation"},
    {"host.student"},
    {"adapters", "host.run"},
    {"evaluate.comparison"},
    {"evaluate.students"},
    {"evaluate.report"},
    {"cli", "testing"},
    {"__main__"},
]
PACKAGE = ROOT / "amd_plugin"
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
           for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py"}  # fmt: skip


def imports(path):
    """Modules of ours that the file at `path` imports, inside functions too, as dotted names without the package."""
    tree = ast.parse(path.read_text())
    types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in types_only or (node.module or "").split(".")[0] != "amd_plugin":
            continue
        base = node.module.removeprefix("amd_plugin").removeprefix(".")
        for alias in node.names:
            module = f"{base}.{alias.name}".removeprefix(".")
            yield module if module in MODULES else base


def place(module):
    """The room of a module: a file or folder at the top, or a wing of `host` or `evaluate`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("host", "evaluate") else parts[0]


def test_every_module_has_a_floor_and_every_floor_is_lived_in():
    places = {place(module) for module in MODULES if module not in ("host", "evaluate")}
    named = [name for floor in FLOORS for name in floor]
    assert sorted(named) == sorted(places)


def test_imports_point_down():
    floor = {name: index for index, names in enumerate(FLOORS) for name in names}
    for module, path in MODULES.items():
        for other in imports(path):
            if other and place(other) != place(module):
                assert floor[place(other)] < floor[place(module)], f"{module} imports {other}, which does not lie below it"


def test_no_file_imports_itself_through_others():
    graph = {
        module: {other for other in imports(path) if other in MODULES and other != module} for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the files


def test_every_folder_says_what_lives_there():
    for folder in {path.parent for path in MODULES.values()} - {PACKAGE}:
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert doc, f"{folder.name} does not say what lives there"


def test_what_is_shown_of_the_image_are_arguments_of_its_entry_point():
    (entry,) = re.findall(r'^ENTRYPOINT \["([\w-]+)"\]$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    runs = [
        file for file in (ROOT / "Dockerfile", ROOT / ".github" / "workflows" / "ci.yml") if "docker run" in file.read_text()
    ]
    commands = [words for file in runs for words in re.findall(r"docker run --rm .*?\bamd-plugin (.+)", file.read_text())]
    assert len(commands) == 2 and not any(words.startswith(entry) for words in commands), commands


def test_the_maths_needs_torch_and_nothing_else():
    for path in (PACKAGE / "maths").glob("*.py"):
        tree = ast.parse(path.read_text())
        roots = {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        roots |= {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert roots <= {"torch", "amd_plugin", "math", "typing", "collections"}, f"{path.name} imports {roots}"


def test_the_host_knows_no_amd():
    for path in (PACKAGE / "host").rglob("*.py"):
        assert "AMDObjective" not in path.read_text() and "objectives.amd" not in set(imports(path)), path.name
        for word in ("strength=", "sharpening=", '"amd"'):
            assert word not in path.read_text(), f"{path.name} mentions {word}"


def test_importing_is_light():
    code = "import sys, amd_plugin; print([m for m in ('torch', 'diffusers', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ("torch", "diffusers", "transformers", "accelerate", "datasets", "sklearn", "scipy", "matplotlib", "pandas", "numpy")
# Runs commands, a JSON list, one after the other; prints a line for each: exit code and the heavy modules there are by then.
RUN = """
import json, sys
from amd_plugin import cli
commands, heavy = map(json.loads, sys.argv[1:])
for words in commands:
    sys.argv[1:] = words
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print(json.dumps(["ended", code, sorted({name.partition(".")[0] for name in sys.modules} & {*heavy})]))
"""


def exits_of(*commands, cwd):
    """(exit code, heavy modules imported by then) of each command, all in one new process."""
    arguments = [sys.executable, "-c", RUN, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=cwd)
    ends = [json.loads(line)[1:] for line in done.stdout.splitlines() if line.startswith('["ended"')]
    assert len(ends) == len(commands), done.stderr
    return ends


def test_lists_help_and_typos_wait_for_no_library(tmp_path):
    """Each of these libraries takes half a second to three seconds to import."""
    lists = [["--help"], ["train", "--help"], ["recipes", "list"], ["recipes", "list", "--json"], ["plugins"]]
    typos = [
        ["trian"], ["train"], ["train", "modes3d"], ["train", "modes2d", "--ouput", "x"], ["plan", "sdxl_5step", "--gpus=8"],
        ["compare", "modes3d"], ["recipes", "show", "modes3d"], ["host", "fastvidoe"],
        ["train", "--resume", "nowhere"], ["train", "--resume", "auto"], ["train", "modes2d", "--resume", "nowhere"],
        *([name, folder] for name in ("evaluate", "export", "report", "replay") for folder in ("nowhere", ".", "x" * 300)),
        ["doctor", "nowhere"], ["train", "modes2d", "--plugin", "nowhere.py"], ["evaluate", "run", "--prompts", "nowhere.txt"],
    ]  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    for words, (code, heavy) in zip([*lists, *typos], exits_of(*lists, *typos, cwd=tmp_path), strict=True):
        assert code == (0 if words in lists else 2) and not heavy, words


def test_recipes_are_checked_with_torch_alone(tmp_path):
    """Where they train on a text file of prompts or on what comes with the package: anything else is read by `datasets`."""
    names = [path.stem for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    commands = [*(["recipes", "validate", name] for name in names), ["recipes", "show", "sdxl_4step"]]
    commands += [["recipes", "validate", "sdxl_4step", "--set=rewards=[{name: image_reward}]"]]
    typos = [["train", "modes2d", "--set=train.max_stps=4"], ["train", "sdxl_4step", "--set=model.pth=x"]]
    for words, (code, heavy) in zip([*commands, *typos], exits_of(*commands, *typos, cwd=tmp_path), strict=True):
        assert code == (2 if words in typos else 0) and {*heavy} <= {"torch", "numpy"}, (words, heavy)


def test_the_schema_of_recipes_waits_for_no_model(tmp_path):
    ((code, heavy),) = exits_of(["recipes", "schema"], cwd=tmp_path)
    assert code == 0 and {*heavy} <= {"torch", "numpy", "accelerate"}


def test_a_report_of_pictures_that_lie_there_waits_for_torch_and_matplotlib_alone():
    code = "import sys, amd_plugin.evaluate.report.report; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*HEAVY} & {*done.stdout.split()} <= {"torch", "matplotlib", "numpy"}


def test_sharding_is_not_imported_until_asked_for():
    code = "import sys, amd_plugin.host.training.trainer, amd_plugin.cli; print('deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names():
    for name in amd_plugin.__all__:
        assert getattr(amd_plugin, name) is not None
    assert set(dir(amd_plugin)) == set(amd_plugin.__all__)


def test_no_pickle_and_no_prints():
    for path in (ROOT / "amd_plugin").rglob("*.py"):
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True)"), path.name
        for word in ("import pickle", "yaml.load(", "trust_remote_code", "\n    print("):
            assert word not in text, f"{path.name}: {word.strip()}"


def test_nothing_is_to_be_installed_from_a_release_that_does_not_exist():
    files = [path for folder in ("amd_plugin", "recipes", "docs") for path in (ROOT / folder).rglob("*.*")]
    texts = {path.name: path.read_text() for path in files if path.suffix in (".py", ".yaml", ".md", ".j2", ".sh")}
    assert [name for name, text in texts.items() if re.search(r"install '?amd-plugin\b", text)] == []


def test_ci_covers_every_declared_python_and_releases_without_a_token():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert jobs["supported"]["strategy"]["matrix"]["python"] == declared
    assert any(step.get("run") == ".ci/run" for step in jobs["pinned"]["steps"]) and (ROOT / ".ci" / "run").is_file()
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert release["publish"]["permissions"] == {"id-token": "write"} and "secrets." not in str(release)
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bi]*.yml"):
        assert {"name", "description", "body"} <= yaml.safe_load(form.read_text()).keys(), form.name


def test_the_source_distribution_has_what_its_tests_and_targets_need():
    section = (
        (ROOT / "pyproject.toml").read_text().partition("[tool.hatch.build.targets.sdist]")[2].partition("[tool.pytest")[0]
    )
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.split()
    left_out = {"pyproject.toml", ".gitignore", ".pre-commit-config.yaml"}  # hatch adds the first two itself
    assert {path.split("/")[0] for path in tracked} <= {*re.findall(r'"(.*?)"', section)} | left_out


def test_the_wheel_runs_somewhere_else(environment, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the source tree must not stand in for the wheel
    python, install = environment
    wheels = tmp_path / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        wheels,
        ROOT,
    ]
    subprocess.run(command, check=True)
    install(next(wheels.glob("amd_plugin-*.whl")))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = subprocess.run(
        [python, "-c", "import amd_plugin; print(amd_plugin.__file__)"], cwd=elsewhere, capture_output=True, text=True
    )
    assert str(tmp_path) in where.stdout, "the wheel's own package is not the one that is imported"
    command = [python.with_name("amd-plugin"), "recipes", "list"]
    assert "modes2d" in subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=240).stdout
    # The first hour, as README has it, with networks and a number of updates that take seconds, and one worker.
    short = [*ON_THE_COMMAND_LINE, "--set=model.heads=1"]
    commands = (
        ["train", "digits", "--objective", "amd", *short],
        ["report", "runs/digits-amd"],
        ["compare", "digits", "--objectives", "dmd,amd", "--seeds", "1", "--workers", "1", *short],
    )
    for code, printed, complaint in ends_of(*commands, cwd=elsewhere, python=python):
        assert code == 0 and "WARNING" not in printed + complaint, complaint
        page = re.search(r"^report: (.*)$", printed, re.MULTILINE)
        assert page and "<table>" in (elsewhere / page[1]).read_text(), printed
    assert json.loads((elsewhere / "runs" / "digits-amd" / "evaluation.json").read_text())


def test_modules_that_moved_are_found_under_their_old_names():
    code = "import importlib, sys, warnings; warnings.simplefilter('error', DeprecationWarning)\n"
    code += "from amd_plugin.moved import MOVED\n"
    code += "for old, new in MOVED.items():\n    assert importlib.import_module(old) is importlib.import_module(new), old\n"
    code += "    assert sys.modules[new].__spec__.name == new == sys.modules[new].__name__\n"
    code += "from amd_plugin.adapters.steering import Steering, make_reward\nfrom amd_plugin.signals import Signals\n"
    code += "from amd_plugin.adapters.bridge import OFFERS, Steering as same\nassert Steering is same and OFFERS\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "amd_plugin.signals is now amd_plugin.maths.signals" in done.stderr
    assert "amd_plugin.adapters.bridge.OFFERS is now in amd_plugin.adapters.offers" in done.stderr


def test_no_file_is_read_or_written_in_the_encoding_of_the_locale():
    """It may be ASCII, which is an error, or Latin-1, which is other text without a word."""
    for file in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
            place = {"read_text": 0, "write_text": 1}.get(getattr(call.func, "attr", ""))
            named = any(keyword.arg == "encoding" for keyword in call.keywords)
            assert place is None or named or len(call.args) > place, f"{file}:{call.lineno}: names no encoding"


def test_workflows_use_actions_by_their_commit():
    """A tag can be moved to other code, and one of these workflows may publish."""
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(file.read_text())["jobs"].values()
        for used in (step["uses"] for job in jobs for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), f"{file.name}: {used}"
