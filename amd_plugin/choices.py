"""Choices that the command line and the library share. The file itself imports nothing else, so that `--help` stays fast."""

from typing import Literal

# Weights of a student: their exponential moving average, or the weights as trained.
Weights = Literal["ema", "raw"]

# Format of an exported student: the whole pipeline, the adapter alone, or the pipeline and any adapter beside it.
StudentFormat = Literal["auto", "full", "lora"]

# Format of a prompt file: one prompt per row, or the layout of a public benchmark.
PromptFormat = Literal["auto", "plain", "geneval", "hpdv2", "vbench"]


def trackers() -> list[str]:
    """Names of the trackers that accelerate knows, without its word for whatever is installed."""
    from accelerate.utils import LoggerType

    return [name for name in LoggerType.list() if name != "all"]
