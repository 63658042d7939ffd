"""ModelOpt's own unit tests of its DMD pipeline, with `AMDPipeline` in place of `DMDPipeline`.

    git clone https://github.com/NVIDIA/Model-Optimizer
    make install && .venv/bin/python -m pytest tests/adapters/test_hosts.py -k modelopt      # once: installs the host
    .venv/bin/python benchmarks/modelopt_own_tests.py Model-Optimizer

The tests are in ModelOpt's repository and not in its wheel, so a checkout is needed; they run against the wheel. Every test
file runs three times: unchanged, with the class replaced at strength 0 and sharpening 0, and with the class replaced at AMD's
defaults with a constant reward. All three must pass the same tests; otherwise the script exits with 1.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = Path("tests", "unit", "torch", "fastgen")
# A pytest plugin that replaces the host's pipelines before any test module imports them.
REPLACE = """
import os, torch
import modelopt.torch.fastgen as fastgen
import modelopt.torch.fastgen.methods.dmd as dmd
import modelopt.torch.fastgen.plugins.qwen_image as qwen
from amd_plugin.adapters.modelopt import AMDPipeline, adaptive

stated = {"zero": dict(strength=0, sharpening=0), "constant": dict(reward=lambda media, prompts: torch.ones(len(media)))}
options, instances = stated[os.environ["AMD_OPTIONS"]], []

def replaced(ours):
    class Replaced(ours):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **options, **kwargs)
            instances.append(1)
    return Replaced

qwen.QwenImageDMDPipeline = replaced(adaptive(qwen.QwenImageDMDPipeline))
fastgen.DMDPipeline = dmd.DMDPipeline = replaced(AMDPipeline)

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"replaced {len(instances)} pipelines")
"""


def outcome(checkout: Path, options: str | None) -> tuple[dict[str, str], int]:
    """Runs the tests, with the pipelines replaced unless `options` is None.

    Returns:
        (test name -> outcome, number of replaced pipelines that the tests made).
    """
    from tests.helpers.hosts import environment

    env = environment("modelopt") | {"AMD_OPTIONS": options or ""}  # type: ignore[no-untyped-call]  # tests have no types
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "-rA", "-q", "-c", os.devnull]
    command += ["--rootdir", str(checkout / "tests"), "--import-mode", "importlib", str(checkout / TESTS)]
    folder = ROOT / ".venv-hosts" / "replaced"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "amd_replaces_dmd.py").write_text(REPLACE)
    env["PYTHONPATH"] = os.pathsep.join([str(folder), env["PYTHONPATH"], str(checkout / "tests")])
    if options:
        command[3:3] = ["-p", "amd_replaces_dmd"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    outcomes = {name: result for result, name in re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+)", done.stdout, re.M)}
    if not outcomes:
        sys.exit(done.stdout + done.stderr)
    replaced = re.search(r"^replaced (\d+) pipelines", done.stdout, re.M)
    return outcomes, int(replaced[1]) if replaced else 0


def main() -> int:
    """Prints the outcomes, and returns the exit code."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / TESTS).is_dir():
        sys.exit(f"usage: {sys.argv[0]} CHECKOUT    # of github.com/NVIDIA/Model-Optimizer, with {TESTS}")
    sys.path.insert(0, str(ROOT))
    checkout = Path(sys.argv[1]).resolve()
    stock = outcome(checkout, None)
    different = 0
    for name, options in (("unchanged", None), ("strength 0, sharpening 0", "zero"), ("defaults, constant reward", "constant")):
        outcomes, replaced = outcome(checkout, options) if options else stock
        passed = sum(result == "PASSED" for result in outcomes.values())
        print(f"{name:26} {passed:3} passed of {len(outcomes)}, {replaced} pipelines replaced")
        for test in sorted(stock[0].keys() | outcomes.keys()):
            if stock[0].get(test) != outcomes.get(test):
                different += 1
                print(f"    {test}: {stock[0].get(test)} unchanged, {outcomes.get(test)} replaced")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
