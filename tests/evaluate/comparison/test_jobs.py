"""What a comparison says while its runs are made."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from amd_plugin.evaluate.comparison import jobs
from amd_plugin.evaluate.comparison.jobs import Job, run_jobs


def test_a_comparison_is_never_silent_for_long(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    said, printed = io.StringIO(), threading.Event()
    console = Console(file=said)
    print_line = console.print

    def note(*words, **options):
        print_line(*words, **options)
        printed.set()

    monkeypatch.setattr(console, "print", note)

    def work(job):  # ends when the console has said something, so that no time is asserted
        assert printed.wait(60)
        return {"tv": 0.5}

    with ThreadPoolExecutor(1) as pool:
        results = run_jobs(pool, work, [Job("modes2d", (), tmp_path, seed) for seed in (0, 1)], console)
    assert results == {("teacher", 0): {"tv": 0.5}, ("teacher", 1): {"tv": 0.5}}
    assert "0 of 2 finished" in said.getvalue() and "[2/2] teacher, seed 1: tv 0.500" in said.getvalue()
