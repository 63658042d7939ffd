"""Workers of a pool that share their imports: a fixture for tests of what workers do, and not of how they start.

The package spawns its workers, and what each of them imports takes longer than what a test has them do. Here a server imports it,
once in a session, and each worker is a fork of that: a process of its own all the same.
"""

import importlib
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running

import pytest

IMPORTED = [
    "amd_plugin.evaluate.comparison.compare", "amd_plugin.host.run", "amd_plugin.host.student.export", "tests.helpers.forked_workers",
]  # fmt: skip


class Worker(ForkServerProcess):
    """Its environment is that of the process which starts it, as a spawned one's is, and not the server's."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.variables = dict(os.environ)

    def run(self):
        os.environ.clear()
        os.environ.update(self.variables)
        super().run()


class Forked(ForkServerContext):
    Process = Worker


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of comparisons and of rewards come from the server."""
    context = Forked()
    context.set_forkserver_preload(IMPORTED)
    ensure_running()  # not where a worker is started, which would leave signals held back in all workers
    for module in ("amd_plugin.evaluate.comparison.jobs", "amd_plugin.rewards.pool"):
        monkeypatch.setattr(importlib.import_module(module), "get_context", lambda method: context)
