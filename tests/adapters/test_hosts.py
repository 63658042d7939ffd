"""Each adapter against its real host, in a process of the host's own; and without a host."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("host", "about", "count"),
    [
        ("modelopt", "", 46), ("modelopt", "_plugins", 14), ("modelopt", "_ranks", 1), ("fastvideo", "", 29),
        ("fastvideo", "_fast", 5), ("fastvideo", "_plugins", 8), ("fastvideo", "_ranks", 23), ("fastvideo", "_wan", 5),
        ("modelopt", "_harvest", 14), ("fastvideo", "_harvest", 10),
    ],
)  # fmt: skip
def test_inside_a_host_from_pypi(inside, host, about, count):
    assert inside(host, about) == count


@pytest.mark.skipif("FASTGEN_SOURCE" not in os.environ, reason="FastGen is on GitHub only; FASTGEN_SOURCE names a checkout")
def test_inside_fastgen(inside):
    assert inside("fastgen", source=os.environ["FASTGEN_SOURCE"]) == 32


@pytest.mark.skipif("LIGHTX2V_SOURCE" not in os.environ, reason="LightX2V is on GitHub only; LIGHTX2V_SOURCE names a checkout")
def test_inside_lightx2v(inside):
    assert inside("lightx2v", source=os.environ["LIGHTX2V_SOURCE"] + "/lightx2v_train") == 48


def test_a_host_that_is_missing():
    """All in one process: a host that is not there leaves nothing behind that the next one could meet."""
    code = (
        "import importlib, sys\n"
        "for host in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(f'amd_plugin.adapters.{host}')\n"
        "    except Exception as error:\n"
        "        print(f'{host}: {type(error).__name__}:', ' '.join(str(error).split()))\n"
    )
    needs = {"modelopt": "nvidia-modelopt", "fastvideo": "fastvideo>=0.2", "fastgen": "git+", "lightx2v": "git clone"}
    done = subprocess.run([sys.executable, "-c", code, *needs], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(needs), done.stdout + done.stderr
    for line, (host, message) in zip(lines, needs.items(), strict=True):
        assert line.startswith(f"{host}: MissingDependency:") and "not installed" in line and message in line


def test_the_other_fastgen_is_refused(tmp_path):
    (tmp_path / "fastgen").mkdir()
    (tmp_path / "fastgen" / "__init__.py").write_text("")
    command = [sys.executable, "-m", "amd_plugin.cli", "host", "fastgen", "--", "--config=c.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 3 and "unrelated package" in done.stderr and "github.com/NVlabs/FastGen" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fastvido"], "Did you mean 'fastvideo'"),
        (["modelopt"], "AMDPipeline"),
        (["lightx2v", "--objective", "dmd"], "must be 'amd' here, got 'dmd'"),
    ],
)
def test_a_host_or_an_objective_that_has_no_adapter(words, message, cli):
    code, printed = cli("host", *words)
    assert code == 2 and message in printed
