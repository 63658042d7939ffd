"""Reading the networks behind rewards: files that are missing, do not fit or would degrade silently are refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from safetensors.torch import load_file
from torch import Tensor, nn

from amd_plugin.disk import at_home
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.models.quiet import quiet
from amd_plugin.models.tokenizer_check import SENTENCES, tells_words_apart


@contextmanager
def reading(reward: str, path: str, kind: str, hint: str) -> Iterator[None]:
    """Silences the libraries, and turns whatever they raise into one line: `path` cannot be read as `kind`, and why.

    Raises:
        InputError: in place of every other exception.
    """
    with quiet(), unreadable_is_input_error(f"reward {reward}: {path} cannot be read as {kind}", f" {hint}"):
        yield


def checkpoint_file(reward: str, path: str, names: Sequence[str], revision: str | None = None) -> Path:
    """The file at `path`, or the first of `names` in the folder or hub repository `path`.

    Raises:
        InputError: if there is none.
    """
    local = at_home(path)
    if local.is_file():
        return local
    if local.is_dir():
        file = next((local / name for name in names if (local / name).is_file()), None)
        if file is None:
            raise InputError(f"reward {reward}: {local} has none of the files {', '.join(names)}. Name the file itself")
        return file
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise InputError(f"reward {reward}: {path} is neither a file, a folder, nor a hub id (owner/name)")
    with reading(reward, path, f"a repository with {' or '.join(names)}", "Check the name and the network"):
        name = names[0]
        if len(names) > 1:
            files = list_repo_files(path, revision=revision)
            name = next((name for name in names if name in files), names[-1])
        return Path(hf_hub_download(path, name, revision=revision))


def read_weights(reward: str, file: Path) -> dict[str, Tensor]:
    """The tensors in `file`, in safetensors' format or torch's own, which is read without running code.

    Raises:
        InputError: if it cannot be read, or holds anything but tensors.
    """
    with reading(reward, str(file), "weights", "Fetch it again; files that need pickle are not read"):
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # training checkpoints hold optimizer states too
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"reward {reward}: {file} holds no mapping of names to tensors. Fetch it again")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def fill(reward: str, module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads `state` into `module`, which must match exactly, and freezes the module in eval mode.

    Raises:
        InputError: for tensors that are missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, needs {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    messages = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names]
    if messages:
        raise InputError(f"reward {reward}: the weights in {source} do not fit: {'; '.join(messages)}")
    module.load_state_dict(dict(state))
    module.requires_grad_(False).eval()


def check_words(reward: str, tokenizer: Any, source: str, hint: str) -> None:
    """Refuses a tokenizer whose files are incomplete: it loads all the same, and maps every word to the unknown token.

    Raises:
        InputError: if it does not tell words apart.
    """
    if not tells_words_apart(tokenizer):
        message = f"does not tell '{SENTENCES[0]}' from '{SENTENCES[1]}'; its vocabulary or merges are missing"
        raise InputError(f"reward {reward}: the tokenizer of {source} {message}. {hint}")


def score_head(width: int) -> nn.Sequential:
    """The linear layers that ImageReward and LAION's aesthetic predictor both end in; their dropout is off in eval mode."""
    sizes = (width, 1024, 128, 64, 16, 1)
    one, two, three, four, five = (nn.Linear(a, b) for a, b in pairwise(sizes))
    return nn.Sequential(one, nn.Dropout(0.2), two, nn.Dropout(0.2), three, nn.Dropout(0.1), four, five)
