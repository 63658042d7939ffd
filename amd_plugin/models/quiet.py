"""Silence for what libraries print and log while they load and encode."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and notes of diffusers, transformers and the hub within the context."""
    import diffusers  # seconds each, which a check of a recipe need not wait for
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    with ExitStack() as restore:
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")
        for name in ("transformers", "diffusers", "huggingface_hub"):
            restore.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.ERROR)
        for library in libraries:
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
