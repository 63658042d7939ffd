"""The conformance tests that third parties run, on our adapter for ModelOpt, and on one that is wrong."""

import os
import subprocess
import sys
from pathlib import Path

from tests.adapters.conftest import environment

HERE = Path(__file__).parent / "inside"


def conform(tmp_path, *words):
    env = environment("modelopt")
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(HERE)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--pyargs", "amd_plugin.testing"]
    return subprocess.run([*command, *words], env=env, cwd=tmp_path, capture_output=True, text=True)


def test_ours_conforms(tmp_path):
    done = conform(tmp_path, "--adapter", "conformance:ModelOpt")
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout + done.stderr


def test_a_wrong_one_is_found_out(tmp_path):
    done = conform(tmp_path, "--adapter", "conformance:Broken")
    assert done.returncode == 1
    for law in ("to_the_bit", "resumed_equals_straight", "changes_the_weights_and_not_the_random_numbers"):
        assert f"{law}" in done.stdout


def test_no_adapter_is_a_usage_error(tmp_path):
    done = conform(tmp_path)
    assert done.returncode != 0 and "--adapter: must be MODULE:CLASS" in done.stdout + done.stderr
    done = conform(tmp_path, "--adapter", "no_such_module:X")
    assert done.returncode != 0 and "no_such_module" in done.stdout + done.stderr
