"""Files of a checkpoint: safetensors and JSON, written completely or not at all.

What a run puts into them is decided in `amd_plugin.host.running`.
"""

from amd_plugin.host.checkpoint.files import (
    available,
    check,
    find,
    load,
    name_of,
    newest,
    partials,
    prune,
    read_state,
    save,
    set_aside,
    step_of,
    tensors_on,
    verify,
    write_manifest,
)

__all__ = [
    "available", "check", "find", "load", "name_of", "newest", "partials", "prune", "read_state", "save", "set_aside",
    "step_of", "tensors_on", "verify", "write_manifest",
]  # fmt: skip
