"""What a user is told about advantage guidance, once, with the setting to change."""

import logging

import torch

from amd_plugin.objectives.contrast_monitor import SILENT, TURNS, ContrastMonitor
from amd_plugin.objectives.contrast_statistics import LARGEST


def told(caplog, gamma, contrast, agreement=1.0, automatic=False, turns=3 * TURNS):
    """The warnings of a monitor: a matching term of length 1, and a standard error of .01 of the agreement."""
    caplog.clear()
    monitor, sums = ContrastMonitor(), torch.tensor([1.0, contrast, contrast / 2, 0.0, agreement, 1e-4])
    with caplog.at_level(logging.WARNING):
        for _ in range(turns):
            monitor.update(sums, gamma, automatic=automatic)
    return [record.message for record in caplog.records]


def test_too_strong_and_too_weak_say_what_to_set(caplog):
    (strong,) = told(caplog, gamma=10.0, contrast=0.2)
    assert "1.00 times as long" in strong and "objective.advantage_guidance to about 1.5, or set it to auto" in strong
    (weak,) = told(caplog, gamma=0.1, contrast=0.2)
    assert "0.010 times" in weak and "about 1.5" in weak
    assert not told(caplog, gamma=1.5, contrast=0.2)
    assert not told(caplog, gamma=10.0, contrast=0.2, automatic=True)
    assert not told(caplog, gamma=10.0, contrast=0.2, turns=TURNS - 1), "not before enough turns"


def test_an_automatic_scale_that_is_not_heard_at_its_largest_is_told(caplog):
    (capped,) = told(caplog, gamma=LARGEST, contrast=0.002, automatic=True)
    assert (
        "largest scale of 15, and still only 0.015 times" in capped
        and "train.outcome_lr, in other toolkits outcome_lr" in capped
    )
    assert not told(caplog, gamma=LARGEST, contrast=0.02, automatic=True)


def test_rewards_that_cannot_be_learned_are_named(caplog):
    (silent,) = told(caplog, gamma=0.0, contrast=0.2, agreement=0.01, automatic=True)
    assert "cannot tell" in silent and "objective.tolerance" in silent and "off, and so are sharpening" in silent
    (noise,) = told(caplog, gamma=2.0, contrast=0.2, agreement=0.01)
    assert "noise of 0.20 times the matching term" in noise
    assert not told(caplog, gamma=2.0, contrast=0.2, agreement=0.01, turns=SILENT - 1), "a contrast takes time to be learned"
