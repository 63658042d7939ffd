"""A recipe's model at its true size and without weights: on the meta device, or of fake tensors where it is to be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from amd_plugin.config import ModelConfig
from amd_plugin.errors import InputError
from amd_plugin.models import shipped_configs
from amd_plugin.models.backbone import check_backbone, pretrained
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.embedded.pipelines import set_text_length, size_of, untrained
from amd_plugin.models.family import Condition, Family, Size
from amd_plugin.models.pretrained import Pretrained, quiet

if TYPE_CHECKING:
    from amd_plugin.tasks import Task


@dataclass
class Outline:
    """What a plan must know of a model.

    Attributes:
        family: how networks are called.
        network: class and config of student, fake score and teacher.
        autoencoder: class and config of what decodes; None where samples are no latents.
        encoders: parameters of each text encoder, by its name.
        size: of decoded samples; None likewise.
        sample_shape: of one sample, as the networks see it.
        tokens: of a prompt.
        source: where the configs come from, in words.
    """

    family: Any
    network: tuple[Any, dict[str, Any]]
    autoencoder: tuple[Any, dict[str, Any]] | None
    encoders: dict[str, int]
    size: Size | None
    sample_shape: tuple[int, ...]
    tokens: int
    source: str

    def build(self, dtype: torch.dtype, depth: int | None = None) -> nn.Module:
        """The frozen network as it would be loaded in `dtype`, on the meta device; with `depth` blocks where given."""
        kind, config = self.network
        network = _on_meta(kind, config if depth is None else {**config, "num_layers": depth})
        kept = getattr(network, "_keep_in_fp32_modules", None) or ()
        for name, parameter in network.named_parameters():
            if not any(part in name.split(".") for part in kept):
                parameter.data = parameter.data.to(dtype)
        return network.requires_grad_(False).eval()

    @property
    def depth(self) -> int | None:
        """How many equal blocks the network has; None for one whose blocks differ."""
        depth = self.network[1].get("num_layers")
        return depth if isinstance(depth, int) else None

    def condition(self, batch: int) -> Condition:
        """Of `batch` samples; only shapes matter."""
        found = {}
        for name, shape in self.family.condition_shapes(self.tokens).items():
            whole = name == "class_labels"
            found[name] = torch.zeros((batch, *shape), dtype=torch.long if whole else torch.float32)
        return found


def outline(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> Outline:
    """The outline of a recipe's model, from the configs of its pipeline or, without a network, from those that are shipped.

    Raises:
        InputError: where there are no configs, or the family does not say what its networks are conditioned on.
    """
    model, source = shipped_configs.with_configs(config)
    if config.network in ("mlp", "dit"):
        network = build_network(config, task, seed)
        return Outline(
            ClassConditional(), (type(network), dict(network.config)), None, {}, None, task.sample_shape, 1, source
        )  # fmt: skip
    found = _of_pipeline(model, families, source) if model.path else _of_embedded(model, task, seed, families, source)
    if not hasattr(found.family, "condition_shapes"):
        what = f"the family of {found.family.pipeline} does not say the shapes of its conditions (condition_shapes)"
        raise InputError(f"model: {what}, without which its calls cannot be traced")
    return found


def _of_pipeline(model: ModelConfig, families: Mapping[str, type[Family]], source: str) -> Outline:
    family, _ = check_backbone(model, families)
    where = pretrained(model)
    set_text_length(family, model)
    kind = getattr(diffusers, family.autoencoder)
    with where._reading("vae/config.json"):
        vae_config = dict(kind.load_config(where.path, subfolder="vae", revision=where.revision))
    index = where.index()
    parts = {n: e for n, e in index.items() if n.startswith("text_encoder") and isinstance(e, list | tuple) and e[1]}
    configs = {name: _encoder_config(where, name) for name in parts}
    encoders = {name: _encoder(parts[name][1], configs[name]) for name in parts}
    tokens = family.text_length or max((getattr(c, "max_position_embeddings", 0) for c in configs.values()), default=0)
    vae = _on_meta(kind, vae_config)
    size = family.size(vae, model.pixels, model.frames)
    network = (getattr(diffusers, family.network), where.network_config(type(family)))
    shape = family.sample_shape(vae, size)
    return Outline(family, network, (kind, vae_config), encoders, size, shape, tokens or 77, source)


def _of_embedded(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]], source: str) -> Outline:
    pipeline = untrained(config, task, seed)
    kind = families[type(pipeline).__name__]
    network, vae = getattr(pipeline, kind.component), pipeline.vae
    family = kind(dict(pipeline.config), dict(network.config))
    set_text_length(family, config)
    encoders = {name: part for name, part in pipeline.components.items() if name.startswith("text_encoder")}
    tokens = family.text_length or max(part.config.max_position_embeddings for part in encoders.values())
    counts = {name: _count(part) for name, part in encoders.items()}
    parts = ((type(network), dict(network.config)), (type(vae), dict(vae.config)))
    return Outline(family, *parts, counts, size_of(task), task.sample_shape, tokens, source)


def _encoder_config(where: Pretrained, name: str) -> Any:
    with where._reading(f"{name}/config.json"):
        return transformers.AutoConfig.from_pretrained(where.path, subfolder=name, revision=where.revision)


def _encoder(kind: str, config: Any) -> int:
    with quiet(), torch.device("meta"):
        return _count(getattr(transformers, kind)(config))


def clip_parameters(path: str, revision: str | None = None) -> int | None:
    """Parameters of a CLIP-like reward model; None where its config cannot be had."""
    local = Path(path).expanduser()
    folder = local if local.is_dir() else shipped_configs.FOLDER / shipped_configs.ENCODERS.get(path, "none")
    try:
        with quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(folder if folder.is_dir() else path, revision=revision)
            return _count(transformers.AutoModel.from_config(config))
    except Exception:  # whatever the hub or the config says: the plan goes on, and names what it left out
        return None


def faking() -> FakeTensorMode:
    """Tensors made inside have no memory, and dispatch as the CPU's do: fused attention stays fused."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def faked(module: nn.Module) -> nn.Module:
    """`module` itself, its tensors on the meta device replaced by fake ones; to be called in fake mode."""
    for part in module.modules():
        for key, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[key] = nn.Parameter(fake, parameter.requires_grad)
        for key, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return module


def build_autoencoder(outline: Outline) -> nn.Module:
    """What decodes, in fp32 as it is loaded, on the meta device."""
    assert outline.autoencoder is not None  # noqa: S101 (asked for only where there is one)
    return _on_meta(*outline.autoencoder).requires_grad_(False).eval()


def _on_meta(kind: Any, config: dict[str, Any]) -> nn.Module:
    with quiet(), torch.device("meta"):
        module: nn.Module = kind.from_config(config)
    return module


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
