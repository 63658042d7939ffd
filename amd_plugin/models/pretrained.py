"""A diffusers pipeline on disk or on the hub, read part by part and checked before anything is trained.

Weights are read from safetensors only, and no code that comes with a model is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedTokenizerBase

from amd_plugin.disk import at_home
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.json_files import read
from amd_plugin.models.family import Family
from amd_plugin.models.lazy_weights import TensorReader, Weights, meta_network
from amd_plugin.models.lora_files import LoraSource
from amd_plugin.models.quiet import quiet
from amd_plugin.models.shipped_configs import hub_problem
from amd_plugin.models.tokenizer_check import tells_words_apart


@dataclass(frozen=True)
class Pretrained:
    """A pipeline as a place to read from.

    Attributes:
        path: a folder with a ``model_index.json``, or a hub id.
        revision: revision of the hub repository; a commit hash pins it.
        variant: variant of the weight files, e.g. ``fp16``.
        key: the recipe's key that names the pipeline, for error messages.
        lora: LoRA that is merged into every part that is read.
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    key: str = "model.path"
    lora: LoraSource | None = None

    def index(self) -> dict[str, Any]:
        """The pipeline's ``model_index.json``.

        Raises:
            InputError: if there is none, or it cannot be read.
        """
        folder = at_home(self.path)
        if folder.is_dir():
            file = folder / "model_index.json"
            if not file.is_file():
                entries = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
                raise InputError(f"{self.key}: {folder} is no diffusers pipeline: it has no model_index.json, but {entries}")
            return read(file, dict[str, Any], "Fetch it again", f"{self.key}: {folder}")
        if folder.is_file():
            how = "make one with diffusers: Pipeline.from_single_file(FILE).save_pretrained(FOLDER), with the pipeline's class"
            raise InputError(f"{self.key}: {self.path} is a single file, and a folder in diffusers' layout is needed; {how}")
        if folder.exists() or folder.is_absolute() or self.path.startswith((".", "~")) or self.path.count("/") != 1:
            hint = "; of an address on the hub, take owner/name" if "://" in self.path else ""
            raise InputError(f"{self.key}: {self.path} is neither a folder nor a hub id (owner/name){hint}")
        with self.reading("model_index.json"):
            return dict(diffusers.DiffusionPipeline.load_config(self.path, revision=self.revision))

    def family(self, families: Mapping[str, type[Family]]) -> Family:
        """The family of the pipeline's class, after a check of all its parts.

        Raises:
            InputError: for a class without a registered family, or a part that is missing or of another class.
        """
        index = self.index()
        name = str(index.get("_class_name"))
        self._refuse_code(index, name)
        if name not in families:
            names = ", ".join(sorted(families))
            raise InputError(f"{self.key}: {self.path} is a {name}, which no installed family can distil. Known are {names}")
        kind = families[name]
        for part, wanted in ((kind.component, kind.network), ("vae", kind.autoencoder), ("scheduler", None)):
            _, actual = _entry(index.get(part))
            if actual is None or (wanted is not None and actual != wanted):
                needed = f"a {wanted} as its {part}" if wanted else f"a {part}"
                raise InputError(f"{self.key}: {self.path} needs {needed} to be distilled, found {actual or 'none'}")
            folder = at_home(self.path) / part
            if at_home(self.path).is_dir() and not folder.is_dir():
                raise InputError(f"{self.key}: {folder} is missing, though model_index.json names it")
        return kind(index, self.network_config(kind))

    def _refuse_code(self, index: Mapping[str, Any], name: str) -> None:
        """Raises InputError for a pipeline, or a part, of a class that comes with it: its code would have to be run."""
        own = [] if isinstance(index.get("_class_name"), str) else [name]
        for part, value in index.items():
            library, kind = _entry(value)
            known = library in (None, "diffusers", "transformers") or hasattr(diffusers.pipelines, str(library))
            own += [] if known or part.startswith("_") else [f"{part} ({kind} of {library})"]
        if own:
            problem = f"has classes of its own, {', '.join(own)}, and no code that comes with a model is ever run"
            raise InputError(f"{self.key}: {self.path} {problem}. Save it with classes of diffusers and transformers")

    def network_config(self, kind: type[Family]) -> dict[str, Any]:
        """The config of the network that is distilled.

        Raises:
            InputError: if it cannot be read, or is of another class than `kind` has.
        """
        with self.reading(f"{kind.component}/config.json"):
            config = _class(kind.network).load_config(self.path, subfolder=kind.component, revision=self.revision)
        name = config.get("_class_name")
        if name != kind.network:
            raise InputError(f"{self.key}: {self.path}/{kind.component} is a {name}, needs a {kind.network}")
        return dict(config)

    def empty_network(self, family: Family) -> nn.Module:
        """The network that is distilled, from its config alone, with initial weights."""
        network: nn.Module = _class(family.network).from_config(self.network_config(type(family)))
        return network

    def network(self, family: Family, dtype: torch.dtype) -> nn.Module:
        """The network that is distilled, frozen, on the CPU, in eval mode."""
        network = self.part(family.network, dtype, family.component)
        if self.lora is not None:
            self.lora.fuse(self.around(family, network), family.component, text=False)
        return network.requires_grad_(False)

    def around(self, family: Family, network: nn.Module) -> Any:
        """A pipeline of `network` and no other models, for what pipelines do with adapters."""
        parts = {name: None for name, entry in self.index().items() if isinstance(entry, list) and name != "scheduler"}
        with self.reading("pipeline"):
            return _class(family.pipeline).from_pretrained(self.path, **{**parts, family.component: network}, **self._options())

    def weights(self, family: Family) -> Weights:
        """The tensors of the network that is distilled, in their files; downloads them where they are on the hub."""
        with self.reading(f"{family.component}'s weights"):
            folder = at_home(self.path)
            if not folder.is_dir():
                folder = Path(snapshot_download(self.path, revision=self.revision, allow_patterns=[f"{family.component}/*"]))
            return Weights(folder / family.component, self.variant, self.key)

    def outlined_network(self, family: Family, dtype: torch.dtype) -> tuple[nn.Module, TensorReader]:
        """(network that is distilled, reader of its parameters); the network is on the meta device, frozen, in eval mode."""
        weights = self.weights(family)
        with self.reading(family.component):
            network = meta_network(lambda: self.empty_network(family), dtype, weights)
        weights.check(network)
        dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
        return network, lambda name: weights(name).to(dtypes[name])

    def autoencoder(self, family: Family) -> nn.Module:
        """The part ``vae`` in fp32: several of the released ones overflow in half precision."""
        return self.part(family.autoencoder, torch.float32, "vae")

    def outlined_autoencoder(self, family: Family) -> nn.Module:
        """The part ``vae`` on the meta device, from its config alone."""
        with self.reading("vae/config.json"), torch.device("meta"):
            kind = _class(family.autoencoder)
            autoencoder: nn.Module = kind.from_config(kind.load_config(self.path, subfolder="vae", revision=self.revision))
        return autoencoder

    def part(self, kind: str, dtype: torch.dtype, subfolder: str | None = None) -> nn.Module:
        """A model of diffusers' class `kind`, frozen, on the CPU, in eval mode.

        `subfolder` is None for a model outside a pipeline.

        Raises:
            InputError: if it cannot be read, or weights of the class are missing: diffusers would leave those at random.
        """
        name = subfolder or kind
        with self.reading(name):
            model, report = _class(kind).from_pretrained(
                self.path, subfolder=subfolder, torch_dtype=dtype, output_loading_info=True, **self._options()
            )
        missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
        if missing:
            problem = f"{len(missing)} are missing or have another shape, the first is {missing[0]}"
            raise InputError(f"{self.key}: {self.path}: the weights of {name} do not fit a {kind}: {problem}. Fetch it again")
        frozen: nn.Module = model.requires_grad_(False).eval()
        return frozen

    def scheduler(self) -> Any:
        """The teacher's scheduler."""
        name = self.index()["scheduler"][1]
        with self.reading("scheduler"):
            return _class(name).from_pretrained(self.path, subfolder="scheduler", revision=self.revision)

    def text_parts(self, family: Family, dtype: torch.dtype) -> Any:
        """The pipeline with its tokenizers and text encoders only."""
        without = {family.component: None, "vae": None}
        with self.reading("text encoders"):
            pipeline = _class(family.pipeline).from_pretrained(self.path, torch_dtype=dtype, **without, **self._options())
        for name, part in pipeline.components.items():
            if isinstance(part, PreTrainedTokenizerBase) and not tells_words_apart(part):
                problem = f"{name} does not tell words apart: files of its vocabulary are missing"
                raise InputError(f"{self.key}: {self.path}: {problem}. Fetch it again")
        if self.lora is not None and self.lora.has_text:
            with torch.device("meta"):
                empty = self.empty_network(family)
            pipeline.register_modules(**{family.component: empty})
            self.lora.fuse(pipeline, family.component, text=True)
            pipeline.register_modules(**{family.component: None})
        return pipeline

    def pipeline(self, family: Family, dtype: torch.dtype, **parts: Any) -> Any:
        """The whole pipeline, with `parts` in place of its own."""
        with self.reading("pipeline"):
            pipeline = _class(family.pipeline).from_pretrained(self.path, torch_dtype=dtype, **parts, **self._options())
        if self.lora is not None and self.lora.has_text:
            self.lora.fuse(pipeline, family.component, text=True)
        return pipeline

    def fingerprint(self) -> list[Any]:
        """JSON-able identity of the text encoders: sizes and times of their files, or hub id and revision."""
        folder, lora = at_home(self.path), []
        if self.lora is not None and self.lora.has_text:
            lora = [self.lora.fingerprint()]
        if not folder.is_dir():
            return [self.path, self.revision, *lora]
        files = sorted(f for part in folder.iterdir() if part.name.startswith(("text", "token")) for f in part.rglob("*.*"))
        return [[str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns] for f in files] + lora

    def _options(self) -> dict[str, Any]:
        return {"revision": self.revision, "variant": self.variant, "use_safetensors": True}

    @contextmanager
    def reading(self, part: str) -> Iterator[None]:
        """Silences the libraries, and turns their exceptions into an InputError of one line with the cause."""
        message, here = f"{self.key}: {self.path}: {part} cannot be read", at_home(self.path).is_dir()
        try:
            with quiet(), unreadable_is_input_error(message, longest=400):
                yield
        except InputError as error:
            if here or not str(error).startswith(message):
                raise
            with quiet():
                reason = hub_problem(self.path, self.revision)
            if reason is not None:  # libraries take a hub that does not answer for one without the file
                raise InputError(f"{message}: the hub does not give it ({reason}). Check name, network and access") from error
            raise InputError(f"{error} Check the name, and the files in the repository") from error


def _entry(value: Any) -> tuple[str | None, str | None]:
    """(library, class) of a part in a model_index.json; (None, None) for an empty one, and for what is no part."""
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
    return (value[0], value[1]) if pair else (None, None)


def _class(name: str) -> Any:
    return getattr(diffusers, name)
