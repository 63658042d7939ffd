"""LoRA files of others as a place to read from: added to a teacher, or the start of a role.

diffusers itself reads the files, so that every format it knows is taken: its own names, kohya's, and Wan's original ones. It
only warns of tensors that it has no place for; here such a file is refused, as half a LoRA makes blurred pictures.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.config import LoraFile
from amd_plugin.disk import at_home
from amd_plugin.errors import OptionError, unreadable_is_input_error
from amd_plugin.models.quiet import quiet

ADAPTER = "amd_plugin"
MATRICES = ("lora_A.weight", "lora_B.weight", ".down.weight", ".up.weight", "lora_down.weight", "lora_up.weight")
TEXT = ("text_encoder", "lora_te")
UNKNOWN = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr"}


class Layer(NamedTuple):
    """The change of one layer's weight, ``up @ down``, scale and weight included.

    Attributes:
        down: matrix [rank, inputs], or a convolution's kernel [rank, inputs, ...].
        up: matrix [outputs, rank], or a convolution's kernel [outputs, rank, 1, ...].
    """

    down: Tensor
    up: Tensor


Layers = Mapping[str, Layer]


@dataclass(frozen=True)
class LoraSource:
    """One LoRA file.

    Attributes:
        file: path on disk or hub id, and weight, from the recipe.
        key: the recipe's key, such as ``teacher_lora``.
    """

    file: LoraFile
    key: str

    def local(self) -> Path:
        """The file on disk; downloads it where it is on the hub.

        Raises:
            OptionError: where there is no such file, or several to choose from.
        """
        path = at_home(self.file.path)
        if path.is_file():
            return path
        if path.is_dir():
            return path / self._only([file.name for file in sorted(path.glob("*.safetensors"))])
        repository, inside = self._on_hub()
        hint = " Check the name, the network, and access to the repository"
        with unreadable_is_input_error(f"model.{self.key}: {self.file.path} cannot be read", hint, longest=400):
            if not inside:
                files = list_repo_files(repository, revision=self.file.revision)
                inside = self._only([file for file in files if file.endswith(".safetensors")])
            return Path(hf_hub_download(repository, inside, revision=self.file.revision))

    def _on_hub(self) -> tuple[str, str]:
        """(repository, file in it or nothing) of a path that is not on disk."""
        path = self.file.path
        owner, _, rest = path.partition("/")
        name, _, inside = rest.partition("/")
        if path.startswith((".", "~", "/")) or not owner or not name:
            hint = "; of an address on the hub, take owner/name/file" if "://" in path else ""
            raise OptionError(self.key, f"{path} is neither a file, nor a folder, nor a hub id (owner/name){hint}")
        return f"{owner}/{name}", inside

    def check(self) -> dict[str, str]:
        """Metadata of a file on disk, which is checked; nothing of one on the hub, which is not fetched for that.

        Raises:
            InputError: for a file that cannot be read, or that is no LoRA; for a path that cannot be one.
        """
        if at_home(self.file.path).exists():
            return self._header()[1]
        self._on_hub()
        return {}

    def _only(self, files: list[str]) -> str:
        usual = [file for file in files if Path(file).name == "pytorch_lora_weights.safetensors"]
        if len(chosen := usual or files) != 1:
            found = ", ".join(chosen[:8]) or "none"
            message = f"{self.file.path} must have one safetensors file, found {found}; add the name of one to the path"
            raise OptionError(self.key, message)
        return chosen[0]

    def _header(self) -> tuple[list[str], dict[str, str]]:
        """(names of the tensors, metadata) of the file, checked."""
        path = self.local()
        with unreadable_is_input_error(f"model.{self.key}: {path} cannot be read"), safe_open(path, "pt") as file:
            names, about = list(file.keys()), dict(file.metadata() or {})
        kinds = {kind for mark, kind in UNKNOWN.items() if any(mark in name for name in names)}
        if kinds or not any(name.endswith(MATRICES) for name in names):
            what = f"a {' and '.join(sorted(kinds))}" if kinds else f"no LoRA: its tensors are {', '.join(sorted(names)[:3])}"
            raise OptionError(self.key, f"{path} is {what}. Only LoRAs can be read; merge it into a pipeline, and name that")
        return names, about

    @staticmethod
    def _diffusers_name(name: str, component: str) -> str:
        """`name` as diffusers reads it, for what PEFT and compiled networks save without the pipeline's name of the part."""
        plain = name.removeprefix("base_model.model.").replace("_orig_mod.", "")
        known = plain.startswith(("unet.", "transformer.", "diffusion_model.", "lora_", *TEXT))
        return plain if known or not plain.endswith(("lora_A.weight", "lora_B.weight")) else f"{component}.{plain}"

    @property
    def has_text(self) -> bool:
        """Whether the file has layers of text encoders too."""
        return any(name.startswith(TEXT) for name in self._header()[0])

    def fingerprint(self) -> list[Any]:
        """JSON-able identity of the file."""
        state = self.local().stat()
        return [self.file.path, self.file.weight, state.st_size, state.st_mtime_ns]

    def fuse(self, pipeline: Any, component: str, *, text: bool) -> None:
        """Adds the LoRA to the weights of `pipeline`'s network, or with `text` to those of its text encoders.

        The result is that of diffusers' ``load_lora_weights`` and ``fuse_lora``, to the bit.

        Raises:
            InputError: for a file that does not fit.
        """
        with self._loaded(pipeline, component, text=text) as parts:
            pipeline.fuse_lora(components=parts, lora_scale=self.file.weight, adapter_names=[ADAPTER])

    def layers(self, pipeline: Any, component: str) -> Layers:
        """The LoRA's layers in `pipeline`'s network, by name, in fp32; the network is left as it is.

        Raises:
            InputError: for a file that does not fit, or has layers of text encoders, which all roles share.
        """
        if any(name.endswith((".diff_b", "lora_B.bias")) for name in self._header()[0]):
            raise OptionError(self.key, "changes biases, which adapters here leave alone; take it as model.teacher_lora")
        if self.has_text:
            raise OptionError(self.key, "has layers of text encoders, which all roles share; take a LoRA of the network only")
        with self._loaded(pipeline, component, text=False):
            network = getattr(pipeline, component)
            return {name: self._layer(part) for name, part in adapted(network, ADAPTER).items()}

    def _layer(self, part: Any) -> Layer:
        scale = float(part.scaling[ADAPTER]) * self.file.weight
        down, up = part.lora_A[ADAPTER].weight, part.lora_B[ADAPTER].weight
        return Layer(down.detach().float().clone(), up.detach().float() * scale)

    @contextmanager
    def _loaded(self, pipeline: Any, component: str, *, text: bool) -> Iterator[list[str]]:
        """The LoRA as an adapter of diffusers within the context; the names of the parts that have it."""
        if not hasattr(pipeline, "load_lora_weights"):
            raise OptionError(self.key, f"a {type(pipeline).__name__} loads no adapters")
        about = self._header()[1]
        tensors = {self._diffusers_name(name, component): value.contiguous() for name, value in load_file(self.local()).items()}
        chosen = {name: value for name, value in tensors.items() if name.startswith(TEXT) == text}
        wanted = sum(name.endswith(MATRICES) for name in chosen)
        parts = [n for n in pipeline.components if n.startswith("text_encoder")] if text else [component]
        with tempfile.TemporaryDirectory() as folder:
            # A file and not its tensors: alphas may be in the metadata, which diffusers reads from files only.
            save_file(chosen, Path(folder) / "lora.safetensors", metadata=about)
            with quiet(), unreadable_is_input_error(f"model.{self.key}: {self.file.path} does not fit"):
                pipeline.load_lora_weights(folder, weight_name="lora.safetensors", adapter_name=ADAPTER)
        try:
            found = 2 * sum(len(adapted(getattr(pipeline, part), ADAPTER)) for part in parts)
            if found != wanted:
                message = f"{self.file.path} has {wanted} matrices, and {found} belong to a {type(pipeline).__name__}'s layers"
                raise OptionError(self.key, f"{message}; it is for another model")
            yield parts
        finally:
            pipeline.unload_lora_weights()


def adapted(network: nn.Module, adapter: str) -> dict[str, Any]:
    """The layers of `network` that have the adapter called `adapter`, by name."""
    layers: dict[str, Any] = {name: part for name, part in network.named_modules() if isinstance(part, BaseTunerLayer)}
    return {name: layer for name, layer in layers.items() if adapter in layer.lora_A}


@torch.no_grad()
def add_layers(network: nn.Module, layers: Layers) -> None:
    """Adds `layers` to the weights of `network`, in fp32."""
    for name, layer in layers.items():
        weight: Any = network.get_submodule(name).weight
        change = torch.tensordot(layer.up.flatten(1), layer.down, dims=([1], [0]))
        weight.copy_(weight.float() + change.reshape(weight.shape).to(weight.device))


@torch.no_grad()
def start_adapter(network: nn.Module, adapter: str, layers: Layers, key: str) -> None:
    """Gives the adapter called `adapter` of `network` the weights of `layers`; the rest of its rank stays as it was.

    Raises:
        OptionError: for layers that the adapter lacks, or of a larger rank than it has.
    """
    own = adapted(network, adapter)
    if missing := sorted(set(layers) - set(own)):
        endings = sorted({name.rpartition(".")[2] if not name.endswith((".0", ".2")) else name for name in missing})
        raise OptionError(
            key, f"has {len(missing)} layers that model.lora.target_modules leaves out, such as {missing[0]}; add to it "
            f"{', '.join(endings[:12])}"
        )  # fmt: skip
    for name, layer in layers.items():
        part = own[name]
        down, up = part.lora_A[adapter].weight, part.lora_B[adapter].weight
        if (rank := len(layer.down)) > len(down):
            raise OptionError(
                key, f"has rank {rank} in {name}, and model.lora.rank is {len(down)}; set that to {rank} at least"
            )
        down[:rank].copy_(layer.down)
        up.zero_()
        up[:, :rank].copy_(layer.up)


def recommended_steps(about: Mapping[str, str]) -> int | None:
    """Number of steps that the metadata of a few-step LoRA of ours names; None for another LoRA."""
    try:
        steps = json.loads(about.get("recommended_steps", "null"))
    except (ValueError, RecursionError):
        return None
    return steps if isinstance(steps, int) else None
