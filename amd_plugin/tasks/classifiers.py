"""Training and caching of the small classifiers of the embedded tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.cache import cached
from amd_plugin.randomness import generator


def trained_classifier(
    kind: str,
    made_of: Mapping[str, Any],
    build: Callable[[], nn.Module],
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    steps: int,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> nn.Module:
    """A network trained with cross-entropy, frozen, in eval mode; trained once, then cached.

    Args:
        kind: name of the cache entry.
        made_of: JSON-able; everything that the result depends on beside `steps` and `learning_rate`.
        build: function that builds the untrained network.
        batch: ``generator -> (inputs [B, ...], classes [B])``, one batch.
        steps: number of updates.
        learning_rate: peak of a cosine schedule with warm-up.
        seed: seed of its first weights and its batches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, kind).initial_seed())
        network = build()

    def make(folder: Path) -> None:
        from diffusers.optimization import get_cosine_schedule_with_warmup  # seconds to import, once per cache

        draws = generator(seed, kind, "training")
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
        decay = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        network.train()
        for _ in range(steps):
            inputs, classes = batch(draws)
            loss = nn.functional.cross_entropy(network(inputs), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        save_file(network.state_dict(), folder / "classifier.safetensors")

    folder = cached(kind, {**made_of, "steps": steps, "learning_rate": learning_rate, "seed": seed}, make)
    network.load_state_dict(load_file(folder / "classifier.safetensors"))
    return network.eval().requires_grad_(False)
