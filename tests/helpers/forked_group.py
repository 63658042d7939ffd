"""``python forked_group.py COUNT SCRIPT ARGUMENTS``: a script in COUNT processes of one group, which share their imports.

For tests of what the processes of a group do, and not of who starts them: the variables are torchrun's. One process imports what
all of them need, and each is a fork of it. Where one fails, the others have some time to end by themselves, and then are told to.
"""

import faulthandler
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

GRACE = 30  # seconds, those that torchrun gives
HANGING = 150  # seconds after which every thread's stack is printed: a test's own limit is 180


def start(rank, count, port):
    """In a new process: makes it one of the group, and runs the script."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    faulthandler.dump_traceback_later(HANGING)
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def wait(children):
    """Exit code of the group: 0, or that of the first process that failed."""
    code, told = 0, None
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            if status and not code:
                code, told = max(1, os.waitstatus_to_exitcode(status)), time.monotonic() + GRACE
        elif told is not None and time.monotonic() > told:
            for other in children:
                os.kill(other, signal.SIGTERM)
            told = None
        else:
            time.sleep(0.02)
    return code


def main():
    import amd_plugin.cli
    import amd_plugin.host.run  # noqa: F401 (for all of them)

    count, children = int(sys.argv[1]), []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(count):
        if not (child := os.fork()):
            start(rank, count, port)
        children.append(child)
    sys.exit(wait(children))


if __name__ == "__main__":
    main()
