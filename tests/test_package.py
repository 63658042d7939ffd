"""The package as it is installed: imports, layers, the wheel."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import amd_plugin

ROOT = Path(__file__).parents[1]

# Each layer may import from those before it, and from its own.
LAYERS = [
    {"errors", "hookspecs", "randomness"},
    {"prediction"},
    {"signals"},
    {"operators", "advantage", "sharpening", "losses", "adversarial", "coherence"},
    {"reward_statistics", "diagnostics"},
    {"objective"},
    {"adaptive"},
    {"plugins", "builtin", "cache", "config", "metrics", "source"},
    {"schedule", "rewards", "tasks", "models", "recipe", "relations", "sharding"},
    {"host", "plan", "doctor", "adapters"},
    {"testing"},
    {"evaluate"},
    {"cli"},
]


def imports(path):
    """Modules of ours that the file at `path` imports when it is imported itself, as dotted names without the package."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for n in ast.walk(node)
    }
    inside = {id(n) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in guarded or id(node) in inside:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "amd_plugin":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("amd_plugin."):
            yield node.module.removeprefix("amd_plugin.")


def layer(module):
    candidates = [index for index, names in enumerate(LAYERS) if module in names or module.split(".")[0] in names]
    exact = [index for index, names in enumerate(LAYERS) if module in names or ".".join(module.split(".")[:2]) in names]
    return (exact or candidates or [None])[0]


def test_imports_point_one_way():
    for path in (ROOT / "amd_plugin").rglob("*.py"):
        module = path.relative_to(ROOT / "amd_plugin").with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if module == "__init__":
            continue
        mine = layer(module)
        assert mine is not None, f"{module} has no layer"
        for other in imports(path):
            if (theirs := layer(other)) is not None:
                assert theirs <= mine, f"{module} imports {other}, which lies above it"


def test_the_maths_needs_torch_and_nothing_else():
    maths = "prediction signals operators advantage sharpening losses adversarial coherence diagnostics"
    for name in maths.split():
        tree = ast.parse((ROOT / "amd_plugin" / f"{name}.py").read_text())
        roots = {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        roots |= {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert roots <= {"torch", "amd_plugin", "math", "typing", "collections"}, f"{name} imports {roots}"


def test_the_host_knows_no_amd():
    for path in (ROOT / "amd_plugin" / "host").glob("*.py"):
        assert "AMDObjective" not in path.read_text() and "builtin" not in set(imports(path)), path.name
        for word in ("strength=", "sharpening=", '"amd"'):
            assert word not in path.read_text(), f"{path.name} mentions {word}"


def test_importing_is_light():
    code = "import sys, amd_plugin; print([m for m in ('torch', 'diffusers', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sharding_is_not_imported_until_asked_for():
    code = "import sys, amd_plugin.host.trainer, amd_plugin.cli; print('deepspeed' in sys.modules)"
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


def test_the_wheel_runs_somewhere_else(environment, tmp_path):
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
    run = lambda *arguments: subprocess.run(  # noqa: E731
        [python.with_name("amd-plugin"), *arguments], cwd=elsewhere, capture_output=True, text=True, timeout=240
    )
    where = subprocess.run(
        [python, "-c", "import amd_plugin; print(amd_plugin.__file__)"], cwd=elsewhere, capture_output=True, text=True
    )
    assert str(tmp_path) in where.stdout, "the wheel's own package is not the one that is imported"
    assert "modes2d" in run("recipes", "list").stdout
    tiny = [f"--set={s}" for s in ("model.width=16", "model.teacher.steps=10", "train.max_steps=2")]
    done = run("train", "modes2d", *tiny)
    assert done.returncode == 0, done.stderr
    assert json.loads((elsewhere / "runs" / "modes2d-amd" / "evaluation.json").read_text())
