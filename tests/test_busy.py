"""What is said while nothing else is."""

import io
import time

import pytest
from rich.console import Console

from amd_plugin import busy


def test_a_line_at_once_and_one_with_the_time_after_a_while(monkeypatch):
    monkeypatch.setattr(busy, "EVERY", 0.01)
    written = io.StringIO()
    with busy.busy(Console(file=written), "training [the] teacher"):
        assert written.getvalue().startswith("training [the] teacher\n")
        while "..." not in written.getvalue():
            time.sleep(0.01)
    said = written.getvalue()
    time.sleep(0.05)
    assert written.getvalue() == said, "it is quiet again afterwards"


def test_what_is_mostly_short_is_said_when_it_is_long(monkeypatch):
    written = io.StringIO()
    with busy.busy(Console(file=written), "saving", at_once=False):
        pass
    assert written.getvalue() == ""
    monkeypatch.setattr(busy, "EVERY", 0.01)
    with busy.busy(Console(file=written), "saving", at_once=False):
        while "..." not in written.getvalue():
            time.sleep(0.01)
    assert written.getvalue().count("saving") == 1 and written.getvalue().startswith("saving\n  ... ")


def test_it_is_quiet_without_a_console_and_lets_errors_through():
    with pytest.raises(KeyError), busy.busy(None, "nothing"):
        raise KeyError
    written = io.StringIO()
    with pytest.raises(KeyError), busy.busy(Console(file=written, force_terminal=True), "something"):
        raise KeyError
    assert "something" in written.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.234, "0.23 s"),
        (12.3, "12 s"),
        (99, "99 s"),
        (100, "1 min 40 s"),
        (163, "2 min 40 s"),
        (594, "9 min 50 s"),
        (596, "10 min"),
        (700, "12 min"),
        (12600, "3.5 h"),
    ],
)
def test_times_in_words(seconds, words):
    assert busy.duration(seconds) == words
