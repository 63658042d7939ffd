"""What all tests share: a cache of their own, no autoloaded plugins, and a recipe that trains in a second."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis
import pytest

from amd_plugin.interrupts import SIGNALS
from tests.helpers.forked_workers import forked_workers  # noqa: F401 (a fixture of all folders)
from tests.helpers.recipes import TINY
from tests.helpers.tiny_wan import alone, wan  # noqa: F401 (fixtures of all folders)

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")


# Under nohup this signal is ignored, and so it is by the programs that tests start; those that are about it must be able to get it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HERE = Path(__file__).parent

# Where the environment forbids bytecode, as container images do, each of the hundreds of processes that tests start would compile
# torch's and diffusers' two thousand modules again: three quarters of what it takes to start. They are kept apart from the sources.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(HERE.parent / "__pycache__"))

# Files whose tests start groups of processes, train a lot or install packages; about the longest first.
SLOW = (
    "sharding/test_engines.py", "adapters/test_hosts.py", "adapters/test_conformance.py",
    "evaluate/comparison/test_compare_command.py", "host/running/test_failures.py", "sharding/test_launchers.py",
    "host/running/test_launchers.py", "host/running/test_odd_files.py", "sharding/test_frozen.py", "rewards/builtin/test_image_reward.py",
    "rewards/builtin/test_hps.py", "test_reliability.py", "test_package.py", "test_fuzz.py", "test_same_result.py",
    "test_frontier.py", "test_third_party.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Slow files go first, so that the workers of `make test` end together; `make quick` leaves out what is marked."""
    places = {HERE / name: place for place, name in enumerate(SLOW)}
    assert all(path.is_file() for path in places), "a slow file has moved: SLOW in tests/conftest.py"
    for item in items:
        if item.path in places:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory):
    """Teachers of earlier runs must not be found, and plugins that happen to be installed must not interfere."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # of this session's workers, which share what they train
    os.environ["AMD_PLUGIN_CACHE"] = str(place / "cache")
    os.environ["AMD_PLUGIN_LOAD"] = "amd"
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def plugins():
    from amd_plugin import get_plugin_manager

    return get_plugin_manager()


@pytest.fixture
def tiny(plugins):
    """``tiny("a.b=c", ..., objective="amd")`` loads a recipe of four student updates."""
    from amd_plugin import recipe

    def load(*overrides, name="modes2d", objective=None, manager=None):
        return recipe.load(name, manager or plugins, (*TINY, *overrides), objective)

    return load


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """``pipeline_folder("sdxl")``: a tiny pipeline of that family on disk, see tests/helpers/pipelines.py."""
    from tests.helpers.pipelines import BUILD

    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            BUILD[name]().save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def piped(plugins, tmp_path, pipeline_folder):
    """``piped("sdxl", "a.b=c", ..., objective="amd")`` loads a recipe of two student updates on a pipeline from disk."""
    from amd_plugin import recipe
    from amd_plugin.hookspecs import hookimpl
    from tests.helpers.pipelines import PROMPTS

    class Brightness:
        @hookimpl
        def distill_rewards(self):
            return {"brightness": lambda: lambda media, prompts: media.flatten(1).mean(1)}

    plugins.register(Brightness())

    def load(family, *overrides, objective=None):
        classes = family in ("dit", "sit")
        prompts = tmp_path / f"{family}-prompts.txt"
        prompts.write_text("\n".join(("1", "2", "0") if classes else PROMPTS))
        video = family.startswith("wan")
        name = "wan21_1_3b_4step" if video else "sdxl_4step"
        size = ("model.pixels=[16, 16]", "model.frames=5", "model.text_length=8") if video else ()
        transition = ("model.transition=ode",) if family == "sit" else ()
        small = (
            f"model.path={pipeline_folder(family)}", "model.pipeline=null", "model.dtype=fp32", f"data.source={prompts}",
            "model.lora.target_modules=[to_q, to_v]", "rewards=[{name: brightness}]", "distributed.mixed_precision='no'",
            "train.max_steps=2", "train.batch_size=8", "train.group_size=4", "train.accumulation=1", "train.fake_updates=2",
            "train.log_every=1", "train.trackers=[]", "evaluate.samples=16", "evaluate.batch_size=4", "data.per_prompt=2",
            "train.gradient_checkpointing=false", "train.student_lr=1e-3", "train.fake_lr=1e-3",
        )  # fmt: skip
        return recipe.load(name, plugins, (*small, *size, *transition, *overrides), objective)

    return load


@pytest.fixture
def cli(monkeypatch, capfd):
    """Runs the command line in this process; returns (exit code, what it printed)."""

    def run(*arguments):
        from amd_plugin import cli as module

        for console in (module.out, module.err):
            monkeypatch.setattr(console, "width", 200)
        monkeypatch.setattr(sys, "argv", ["amd-plugin", *map(str, arguments)])
        hook = threading.excepthook
        handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
        try:
            module.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:  # this process goes on, and is not to answer signals as a command does
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            threading.excepthook = hook
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def environment(tmp_path):
    """A virtual environment of its own that sees this one's packages behind its own; returns its python and an installer."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    import torch

    packages = os.path.dirname(os.path.dirname(torch.__file__))
    with open(os.path.join(site, "zz_host.pth"), "w") as file:
        file.write(f"import site; site.addsitedir({packages!r})\n")

    def install(source):
        options = ["--quiet", "--no-compile", "--no-deps", "--no-build-isolation", "--no-index"]
        command = [sys.executable, "-m", "pip", "--python", python, "install", *options, source]
        subprocess.run(command, check=True)

    return python, install
