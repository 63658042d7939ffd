"""The laws. The name of each is a property that a host's users may rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from amd_plugin.testing.adapter import Adapter, Trace

STEPS = 10


def brightness(media: Tensor, prompts: Any) -> Tensor:
    """A reward that differs between samples."""
    return media.flatten(1).mean(1)


def failing(media: Tensor, prompts: Any) -> Tensor:
    """A reward whose service is down."""
    raise ConnectionError("no answer")


def equal(a: Trace, b: Trace) -> bool:
    """Whether two traces are equal to the bit."""
    same = all(torch.equal(x, y) for x, y in zip(a.losses + a.weights, b.losses + b.weights, strict=True))
    return same and torch.equal(a.random_state, b.random_state)


def assert_near(a: Trace, b: Trace) -> None:
    """Equality to float tolerance, with the same stream of random numbers."""
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(a.weights, b.weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(a.random_state, b.random_state)


def test_strength_and_sharpening_0_is_the_host_to_the_bit(adapter: Adapter) -> None:
    """Losses, weights and random numbers after ten updates."""
    assert equal(adapter.amd({"strength": 0, "sharpening": 0}, brightness).train(STEPS), adapter.stock().train(STEPS))


def test_without_a_reward_it_is_the_host(adapter: Adapter) -> None:
    """Without a reward there are no advantages."""
    assert_near(adapter.amd({}, None).train(STEPS), adapter.stock().train(STEPS))


def constant(value: float) -> Callable[..., Any]:
    """A reward that is the same for all samples."""
    return lambda media, prompts: torch.full((len(media),), value)


@pytest.mark.parametrize("reward", [constant(1.0), constant(torch.nan), failing], ids=["equal", "nan", "raises"])
def test_equal_or_failed_rewards_are_advantage_0(adapter: Adapter, reward: Callable[..., Any]) -> None:
    """This goes through AMD's own code, with the guidance scale converted and the host's normaliser kept."""
    assert_near(adapter.amd({"strength": 0.5, "sharpening": 1.0}, reward).train(STEPS), adapter.stock().train(STEPS))


def test_the_normaliser_and_the_guidance_scale_are_the_hosts(adapter: Adapter) -> None:
    """Exactly one normaliser gives the host's losses, and it is the default; with a wrong guidance scale neither does."""
    stock = adapter.stock().train(4)
    near = []
    for options in ({}, {"normalizer": "per_sample"}, {"normalizer": "global"}):
        losses = adapter.amd({"side": "both", **options}, constant(1.0)).train(4).losses
        near.append(all(torch.allclose(a, b, rtol=1e-4, atol=1e-12) for a, b in zip(losses, stock.losses, strict=True)))
    assert near[0] and sorted(near[1:]) == [False, True]


@pytest.mark.parametrize("part", [{"strength": 0.5, "sharpening": 0}, {"strength": 0, "sharpening": 1.0}], ids=str)
def test_the_order_of_a_batch_does_not_matter(adapter: Adapter, part: dict[str, Any]) -> None:
    """Reordering the rows and the random numbers drawn for them changes neither losses nor weights."""
    if "order" not in inspect.signature(adapter.amd).parameters:
        pytest.skip("this adapter's amd() takes no order")
    options = {"side": "both", **part}
    straight = adapter.amd(options, brightness).train(4)
    order = [2, 0, 3, 1]
    reordered = adapter.amd(options, brightness, order=order).train(4)
    torch.testing.assert_close(reordered.losses, straight.losses, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(reordered.weights, straight.weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(reordered.random_state, straight.random_state)


@pytest.mark.parametrize(
    "part", [{"strength": 0.5, "sharpening": 0, "side": "both"}, {"strength": 0, "sharpening": 1.0}], ids=str
)
def test_a_reward_changes_the_weights_and_not_the_random_numbers(adapter: Adapter, part: dict[str, Any]) -> None:
    """Each of AMD's two parts has an effect by itself."""
    ours, stock = adapter.amd(part, brightness).train(STEPS), adapter.stock().train(STEPS)
    assert torch.equal(ours.random_state, stock.random_state)
    assert not all(torch.equal(a, b) for a, b in zip(ours.weights, stock.weights, strict=True))
    assert all(torch.isfinite(x).all() for x in ours.losses + ours.weights)


def test_resumed_equals_straight_to_the_bit(adapter: Adapter) -> None:
    """Six updates, or three, a new run, and three more."""
    straight = adapter.amd({}, brightness)
    straight.train(3)
    expected = straight.train(3)
    first, second = adapter.amd({}, brightness), adapter.amd({}, brightness)
    first.train(3)
    second.restore(first.state())
    assert equal(expected, second.train(3))


@pytest.mark.parametrize("options", [{"strength": 1.0}, {"strenght": 0.5}], ids=str)
def test_bad_options_are_refused_by_name(adapter: Adapter, options: dict[str, Any]) -> None:
    """Before anything is trained."""
    from amd_plugin.errors import InputError

    with pytest.raises(InputError, match=next(iter(options))):
        adapter.amd(options, None)
