"""The alarm for hacked rewards in somebody else's trainer."""

import logging

import pytest
import torch

from amd_plugin import AMDObjective
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.validation import Validation, validation_metrics
from amd_plugin.errors import InputError

PROMPTS = ["cat", "cat", "dog", "dog"]


def brightness(media, prompts):
    return media.flatten(1).mean(1)


def contrast(media, prompts):
    return media.flatten(1).std(1)


def validation(plugins, reward=brightness, held_out=contrast):
    return Validation(HostBridge(AMDObjective(1.0), reward), held_out, plugins)


def validated(judged, step, drift):
    """Pictures that get brighter and flatter with `drift`."""
    media = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * (1 - drift) + drift
    judged.add(media[:2], PROMPTS[:2])
    judged.add(media[2:], PROMPTS[2:])
    return judged.finish(step)


def test_a_reward_that_rises_while_the_judge_falls_raises_the_alarm_once(plugins, caplog):
    judged = validation(plugins)
    with caplog.at_level(logging.WARNING):
        rows = [validated(judged, step, 0.1 * step) for step in range(8)]
    assert set(rows[0]) == {"evaluated_reward/reward", "evaluated_spread/reward", "held_out/judge", "sensor/reward",
                            "hacking_alarm"}  # fmt: skip
    assert rows[0]["hacking_alarm"] == 0 and rows[-1]["hacking_alarm"] == 1
    assert caplog.text.count("may be hacked") == 1 and "amd.sharpening (now 1.0)" in caplog.text
    again = validation(plugins)
    again.load_state_dict(judged.state_dict())
    assert validated(again, 8, 0.85)["hacking_alarm"] == 1
    assert not any(row["hacking_alarm"] for row in [validated(validation(plugins), step, 0.0) for step in range(8)])


def test_without_an_option_to_lower_the_advice_names_the_objectives_strength(plugins, caplog):
    judged = Validation(HostBridge(AMDObjective(1.0, strength=0, sharpening=0), brightness), contrast, plugins)
    for step in range(8):
        validated(judged, step, 0.1 * step)
    assert "Lower the strength of the objective, or give it less weight" in caplog.text


def test_the_sensor_is_the_agreement_within_prompts():
    scores = torch.tensor([[1.0, 5.0], [2.0, 6.0], [30.0, 2.0], [20.0, 1.0]], dtype=torch.float64)
    groups = torch.tensor([1, 1, 2, 2])
    assert validation_metrics(scores, groups, ["a"], ["b"])["sensor/a"] == pytest.approx(5.5 / 50.5**0.5)
    scores[0, 0] = torch.nan
    row = validation_metrics(scores, groups, ["a"], ["b"])
    assert row["held_out/b"] == 3.5 and row["evaluated_reward/a"] == pytest.approx(52 / 3) and row["sensor/a"] == 1
    assert validation_metrics(scores[:0], groups[:0], ["a"], ["b"]) == {}


def test_named_rewards_have_a_row_each_and_a_judge_that_fails_is_left_out(plugins):
    from amd_plugin.adapters.named_rewards import make_reward

    reward = make_reward([{"name": "hackable"}, {"name": "random", "weight": 0.5}], plugins)
    row = validated(validation(plugins, reward, lambda media, prompts: 1 / 0), 0, 0.0)
    assert {"evaluated_reward/hackable", "evaluated_reward/random"} <= set(row) and "held_out/judge" not in row


def test_a_judge_sees_the_samples_and_not_what_the_reward_left_of_them(plugins):
    seen = []
    black = lambda media, prompts: media.mul_(0).sum((1, 2, 3))  # noqa: E731
    validated(validation(plugins, black, lambda media, prompts: seen.append(media) or [0.0] * 2), 0, 0.5)
    assert all(media.min() > 0.4 for media in seen) and len(seen) == 2


@pytest.mark.parametrize(("reward", "held_out", "message"), [
    (None, contrast, "amd.held_out: judges a reward"), (brightness, {"name": "nope"}, "nope"), (brightness, 3, "held_out: must"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused(plugins, reward, held_out, message):
    with pytest.raises(InputError, match=message):
        validation(plugins, reward, held_out)
