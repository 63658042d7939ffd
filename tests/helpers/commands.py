"""Programs in processes of their own that share their imports: a server imports what they need, and is forked for each of them.

What torch and diffusers take to be imported is more than most programs of tests take to run. Each begins where a new process has
imported everything, with an environment and a folder of its own, and ends as a process does.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SERVER = """
import gc, json, os, sys
{imports}
gc.freeze()  # what is imported is not looked through, and so not copied, in every child
for line in sys.stdin:
    code, words, folder, variables, files = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for stream, file in enumerate([os.devnull, *files]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv[1:] = words
    exec(compile(code, "<string>", "exec"), {{"__name__": "__main__"}})
    sys.exit()
"""
PROGRAM = "amd_plugin.evaluate.comparison.compare, amd_plugin.host.run, amd_plugin.host.student.export"


class End(NamedTuple):
    """How a program ended, and what it printed."""

    code: int
    out: str
    err: str


class Server:
    """A process that has imported what programs need.

    Args:
        imports: lines of Python.
        python: the interpreter.
        environment: environment variables beside those of this process, which libraries read when they are imported.
    """

    def __init__(self, imports, python=sys.executable, **environment):
        self.environment, self.place = environment, tempfile.TemporaryDirectory()
        self.errors = (Path(self.place.name) / "server.txt").open("w+")
        self.process = subprocess.Popen(
            [python, "-c", SERVER.format(imports=imports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env={**os.environ, **environment}, cwd=self.place.name,
        )  # fmt: skip

    def run(self, code, *words, cwd):
        """The end of a program, Python code that is run as ``python -c`` does, with `words` as its arguments, in the folder `cwd`."""
        files = [Path(self.place.name) / name for name in ("out", "err")]
        for file in files:
            file.unlink(missing_ok=True)
        variables = {**os.environ, **self.environment}
        asked = [code, [str(word) for word in words], str(cwd), variables, [str(file) for file in files]]
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BaseException:  # of a time that is over, or a server that is
            self.close()
            raise
        assert answer, Path(self.errors.name).read_text()
        return End(int(answer), *(file.read_text() for file in files))

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.place.cleanup()


def ends_of(*commands, cwd, python=sys.executable, **environment):
    """The end of each command, a list of the words after `amd-plugin`, one after the other."""
    server = Server(f"from amd_plugin import cli\nimport {PROGRAM}", python, **environment)
    try:
        code = "import sys\nfrom amd_plugin import cli\nsys.exit(cli.main())"
        return [server.run(code, *command, cwd=cwd) for command in commands]
    finally:
        server.close()
