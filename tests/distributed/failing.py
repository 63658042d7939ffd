"""The command line with a process that fails: ``BAD`` is its rank, ``HOW`` what it does."""

import os
import signal
import sys
import time

from amd_plugin.cli import main
from amd_plugin.host import checkpoint
from amd_plugin.host.trainer import Trainer

MINE = os.environ["RANK"] == os.environ["BAD"]


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def wrapped(owner, name, before):
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: (before(*args, **kwargs), original(*args, **kwargs))[1])


def in_second_cycle(action):
    return lambda trainer, *rest: action() if MINE and trainer.step == 1 else None


HOW = {
    "dies while it saves": lambda: wrapped(
        checkpoint, "_write", lambda path, content: end() if MINE and "000002" in str(path) else None
    ),
    "dies": lambda: wrapped(Trainer, "_student_turn", in_second_cycle(end)),
    "hangs": lambda: wrapped(Trainer, "_student_turn", in_second_cycle(lambda: time.sleep(20))),
}

if __name__ == "__main__":
    HOW[os.environ["HOW"]]()
    sys.exit(main())
