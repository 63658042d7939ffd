"""What passes by in a turn of FastGen: options, texts of a batch, and predictions of a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """A prediction [B, ...] of a network, and the call that makes it again."""

    x0: Tensor
    again: Callable[[], Tensor]


@contextmanager
def predictions_of(network: nn.Module) -> Iterator[list[Prediction]]:
    """Records the predictions of `network`; where it returns features too, the prediction comes first."""
    predictions: list[Prediction] = []

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, list | tuple) else output
        predictions.append(Prediction(first, functools.partial(network, *args, **kwargs)))

    hook = network.register_forward_hook(record, with_kwargs=True)
    try:
        yield predictions
    finally:
        hook.remove()


def texts_of(data: Mapping[str, Any]) -> list[str] | None:
    """The texts of a batch; None if its conditions are none."""
    texts = data.get("condition_raw")
    return list(texts) if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts) else None


def plain(options: Any) -> Any:
    """Options without the OmegaConf containers of FastGen's command line; callables stay as they are."""
    import omegaconf

    return omegaconf.OmegaConf.to_container(options, resolve=True) if omegaconf.OmegaConf.is_config(options) else options
