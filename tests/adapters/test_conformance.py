"""The conformance tests that third parties run, on each of our adapters, and on adapters that are wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hosts import environment

HERE = Path(__file__).parent
LAWS = 13


def conform(tmp_path, *words, host="modelopt", source=None):
    env = environment(host) if host else os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    path = [source, env["PYTHONPATH"], str(HERE / "inside" if host else HERE)]
    env["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--pyargs", "amd_plugin.testing"]
    return subprocess.run([*command, *words], env=env, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("host", "adapter"),
    [
        ("modelopt", "conformance:ModelOpt"),
        ("fastvideo", "conformance_fastvideo:FastVideo"),
        (None, "conformance_shim:Shim"),
        (None, "conformance_shim:Offset"),
    ],
)
def test_ours_conform(tmp_path, host, adapter):
    done = conform(tmp_path, "--adapter", adapter, host=host)
    assert done.returncode == 0 and re.search(rf"^{LAWS} passed in", done.stdout, re.M), done.stdout + done.stderr


@pytest.mark.skipif("FASTGEN_SOURCE" not in os.environ, reason="FastGen is on GitHub only; FASTGEN_SOURCE names a checkout")
def test_fastgen_conforms(tmp_path):
    words = ["--adapter", "conformance_fastgen:FastGen"]
    done = conform(tmp_path, *words, host="fastgen", source=os.environ["FASTGEN_SOURCE"])
    assert done.returncode == 0 and re.search(rf"^{LAWS} passed in", done.stdout, re.M), done.stdout + done.stderr


@pytest.mark.skipif("LIGHTX2V_SOURCE" not in os.environ, reason="LightX2V is on GitHub only; LIGHTX2V_SOURCE names a checkout")
@pytest.mark.parametrize("trainer", ["Dmd", "VideoDmd", "VideoArDmd", "VideoPhasedDmd"])
def test_every_trainer_of_lightx2v_conforms(tmp_path, trainer):
    source = os.environ["LIGHTX2V_SOURCE"] + "/lightx2v_train"
    done = conform(tmp_path, "--adapter", f"conformance_lightx2v:{trainer}", host="lightx2v", source=source)
    assert done.returncode == 0 and re.search(rf"^{LAWS} passed in", done.stdout, re.M), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("adapter", "laws"),
    [
        ("Broken", ["to_the_bit", "resumed_equals_straight", "changes_the_weights_and_not_the_random_numbers"]),
        ("WrongGuidance", ["normaliser_and_the_guidance"]),
        ("WrongNormaliser", ["normaliser_and_the_guidance"]),
        ("FirstRow", ["order_of_a_batch"]),
    ],
)
def test_a_wrong_one_is_found_out(tmp_path, adapter, laws):
    chosen = " or ".join(laws)
    done = conform(tmp_path, "--adapter", f"conformance:{adapter}", "-k", chosen)
    assert done.returncode == 1, done.stdout
    for law in laws:
        assert re.search(rf"^FAILED .*{law}", done.stdout, re.M), done.stdout


def test_no_adapter_is_a_usage_error(tmp_path):
    done = conform(tmp_path)
    assert done.returncode != 0 and "--adapter: must be MODULE:CLASS" in done.stdout + done.stderr
    done = conform(tmp_path, "--adapter", "no_such_module:X")
    assert done.returncode != 0 and "no_such_module" in done.stdout + done.stderr
