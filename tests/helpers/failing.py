"""The command line with a process that fails: ``BAD`` is its rank, ``HOW`` what it does."""

import os
import signal
import sys
import time

from amd_plugin.cli import main
from amd_plugin.host import checkpoint, run
from amd_plugin.host.checkpoint import files
from amd_plugin.host.training import setup
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.sharding.shares import Shares

MINE = os.environ["RANK"] == os.environ["BAD"]


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    """Until the launcher ends it, at once, which it does when the other process has given up."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)


def wrapped(owner, name, before):
    original = getattr(owner, name)

    def after_that(*args, **kwargs):
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, after_that)


def end_in_second_save():
    """In the middle of what all processes put together."""
    steps = []
    wrapped(checkpoint, "save", lambda folder, step, *rest, **options: steps.append(step))
    wrapped(Shares, "whole", lambda *arguments: steps.append(0) if steps and max(steps) == 2 else None)
    wrapped(Shares, "whole", lambda *arguments: end() if MINE and steps.count(0) > 20 else None)


def in_second_cycle(action):
    return lambda trainer, *rest: action() if MINE and trainer.step == 1 else None


HOW = {
    "dies while it saves": lambda: wrapped(
        files, "write_json", lambda path, content: end() if MINE and "000002" in str(path) else None
    ),
    "dies while all save": end_in_second_save,
    "hangs while it prepares": lambda: wrapped(setup, "build_roles", lambda *run, **options: hang() if MINE else None),
    "dies while it opens the folder": lambda: wrapped(run, "open_folder", lambda *arguments: end() if MINE else None),
    "dies": lambda: wrapped(Trainer, "student_turn", in_second_cycle(end)),
    "hangs": lambda: wrapped(Trainer, "student_turn", in_second_cycle(hang)),
}

if __name__ == "__main__":
    HOW[os.environ["HOW"]]()
    sys.exit(main())
