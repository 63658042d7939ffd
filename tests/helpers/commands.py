"""Commands in processes of their own that share their imports: one process imports the program, and is forked for each of them.

Each begins where a new process has imported everything, finds the environment of a new process, and ends as one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

RUN = """
import gc, json, os, sys
from pathlib import Path
from amd_plugin import cli
import amd_plugin.evaluate.comparison.compare, amd_plugin.host.run, amd_plugin.host.student.export
commands, place = json.loads(sys.argv[1]), Path(sys.argv[2])
gc.freeze()
for number, words in enumerate(commands):
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (place / f"{number}.code").write_text(str(code))
        continue
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[1:] = words
    sys.exit(cli.main())
"""


class End(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def ends_of(*commands, cwd, python=sys.executable, timeout=280, **environment):
    """The end of each command, a list of the words after `amd-plugin`, one after the other."""
    with tempfile.TemporaryDirectory() as place:
        words = json.dumps([[str(word) for word in command] for command in commands])
        variables = {**os.environ, **environment}
        done = subprocess.run(
            [python, "-c", RUN, words, place], cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        read = lambda number, name: (Path(place) / f"{number}.{name}").read_text()  # noqa: E731
        return [End(int(read(n, "code")), read(n, "out"), read(n, "err")) for n in range(len(commands))]
