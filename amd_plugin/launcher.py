"""What a launcher, such as torchrun or accelerate, gives its processes in environment variables."""

import os

from amd_plugin.errors import InputError


def launcher_number(name: str, default: int) -> int:
    """The number that a launcher gives in the environment variable `name`; raises InputError where it holds none."""
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{name}: a launcher gives a number, got '{text}'. Unset it, or start with a launcher") from error
