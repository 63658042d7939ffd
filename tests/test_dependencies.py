"""What the package imports is declared, what is declared is used, and what is heavy is imported by those who need it only."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from tests.helpers.documentation import ROOT

PACKAGE = ROOT / "amd_plugin"
# Needed without an import of ours.
NO_IMPORT = {
    "ftfy": "diffusers' Wan pipeline cleans prompts with it",
}
# Imported without being declared.
HOSTS = {
    "fastvideo",
    "fastgen",
    "lightx2v_train",
    "loguru",
    "modelopt",
    "nemo_automodel",
    "omegaconf",
    "wandb",
}  # an adapter is imported where its host is
ONLY_IN = {"pytest": "testing"}  # whoever runs the conformance tests has it
HEAVY = {"diffusers", "transformers", "accelerate", "deepspeed", "datasets", "trl", "sklearn", "matplotlib", "peft"}


NEWER = {"tomllib", "annotationlib", "compression"}  # modules that the oldest Python of pyproject.toml lacks


def pyproject():
    """The content of pyproject.toml; skips the test where Python cannot read it."""
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())


def canonical(name):
    """A distribution's name without version and marker, as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def imported():
    """Top-level modules that the package imports anywhere, inside functions too, with the folders that do."""
    folders = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                folders.setdefault(name.split(".")[0], set()).add(path.relative_to(PACKAGE).parts[0])
    return {name: where for name, where in folders.items() if name not in sys.stdlib_module_names and name != "amd_plugin"}


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    project = pyproject()["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {canonical(name) for name in project["dependencies"]}
    distributions = packages_distributions()
    used = set()
    for name, folders in imported().items():
        if name in HOSTS or folders == {ONLY_IN.get(name)} or canonical(name) in map(canonical, extras):
            continue
        assert name in distributions, f"{name} is imported and not installed: which distribution is it of?"
        used |= {canonical(distribution) for distribution in distributions[name]}
    assert used - declared - {canonical(name) for name in extras} == set(), "imported, and not declared in pyproject.toml"
    assert declared - used == set(NO_IMPORT), "declared, and not imported"


def test_the_maths_the_objectives_and_the_adapters_import_nothing_heavy():
    """In one process, one after the other: what a module brings is named with it."""
    light = [
        f"amd_plugin.{folder}.{path.stem}" for folder in ("maths", "objectives") for path in (PACKAGE / folder).glob("*.py")
    ]
    light += [
        "amd_plugin.adapters.bridge",
        "amd_plugin.adapters.host_objective",
        "amd_plugin.adapters.compatibility",
        "amd_plugin.adapters.shim",
    ]
    modules = ["amd_plugin", "amd_plugin.hookspecs", *sorted(name.removesuffix(".__init__") for name in light)]
    code = (
        "import importlib, sys\n"
        "heavy = set(sys.argv[1].split())\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    assert not heavy & set(sys.modules), f'{name} imports {heavy & set(sys.modules)}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, " ".join(HEAVY), *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_source_distribution_holds_what_the_repository_documents():
    include = pyproject()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"amd_plugin", "recipes", "tests", "examples", "docs", "benchmarks"} <= set(include)
    assert all((ROOT / name).exists() for name in include)


def test_no_file_needs_a_module_that_the_oldest_python_lacks():
    for path in (
        path for folder in ("amd_plugin", "benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not NEWER & {name.split(".")[0] for name in names}, (
                f"{path} imports {names}: pytest.importorskip where it is used"
            )
