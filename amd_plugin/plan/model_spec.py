"""A recipe's model at its true size and without weights: on the meta device, or with fake tensors for calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from amd_plugin.config import ModelConfig
from amd_plugin.disk import at_home
from amd_plugin.errors import InputError
from amd_plugin.models import shipped_configs
from amd_plugin.models.backbone import check_backbone, pretrained
from amd_plugin.models.dtypes import cast_weights
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.embedded.pipelines import set_text_length, size_of, untrained
from amd_plugin.models.family import Condition, Family, Size
from amd_plugin.models.pretrained import Pretrained
from amd_plugin.models.quiet import quiet

if TYPE_CHECKING:
    from amd_plugin.tasks import Task


@dataclass
class ModelSpec:
    """The classes, configs and sizes of a model.

    Attributes:
        family: family of the networks, which defines how they are called.
        network: class and config of student, fake score and teacher.
        autoencoder: class and config of the autoencoder; None where samples are not latents.
        encoders: number of parameters of each text encoder, by its name.
        size: size of a decoded sample; None where samples are not latents.
        sample_shape: shape of one sample, as the networks take it.
        tokens: number of tokens of a prompt.
        source: origin of the configs, in words.
    """

    family: Family | ClassConditional
    network: tuple[Any, dict[str, Any]]
    autoencoder: tuple[Any, dict[str, Any]] | None
    encoders: dict[str, int]
    size: Size | None
    sample_shape: tuple[int, ...]
    tokens: int
    source: str

    def build(self, dtype: torch.dtype, depth: int | None = None) -> nn.Module:
        """The frozen network as it would be loaded in `dtype`, on the meta device.

        Args:
            dtype: precision of its parameters, except those that its class keeps in fp32.
            depth: number of blocks; None for all.
        """
        kind, config = self.network
        network = _on_meta(kind, config if depth is None else {**config, "num_layers": depth})
        cast_weights(network, dtype)
        return network.requires_grad_(False).eval()

    @property
    def depth(self) -> int | None:
        """Number of equal blocks of the network; None for one whose blocks differ."""
        depth = self.network[1].get("num_layers")
        return depth if isinstance(depth, int) else None

    def condition(self, batch: int) -> Condition:
        """A condition of `batch` samples, all zeros: only its shapes matter."""
        condition = {}
        for name, shape in self.family.condition_shapes(self.tokens).items():
            dtype = torch.long if name == "class_labels" else torch.float32
            condition[name] = torch.zeros((batch, *shape), dtype=dtype)
        return condition


def model_spec(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> ModelSpec:
    """The spec of a recipe's model, from its pipeline's configs or, offline, from those shipped with this package.

    Raises:
        InputError: where there are no configs, or the family does not define the shapes of its conditions.
    """
    model, source = shipped_configs.with_configs(config)
    if config.network in ("mlp", "dit"):
        network = build_network(config, task, seed)
        own: Any = network.config
        return ModelSpec(ClassConditional(), (type(network), dict(own)), None, {}, None, task.sample_shape, 1, source)
    return _of_pipeline(model, families, source) if model.path else _of_embedded(model, task, seed, families, source)


def _check_family(family: Family) -> None:
    if not hasattr(family, "condition_shapes"):
        message = f"the family of {family.pipeline} does not say the shapes of its conditions (condition_shapes)"
        raise InputError(f"model: {message}, without which its calls cannot be traced")


def _of_pipeline(model: ModelConfig, families: Mapping[str, type[Family]], source: str) -> ModelSpec:
    family, _ = check_backbone(model, families)
    pipeline = pretrained(model)
    set_text_length(family, model)
    kind = getattr(diffusers, family.autoencoder)
    with pipeline.reading("vae/config.json"):
        vae_config = dict(kind.load_config(pipeline.path, subfolder="vae", revision=pipeline.revision))
    index = pipeline.index()
    parts = {n: e for n, e in index.items() if n.startswith("text_encoder") and isinstance(e, list | tuple) and e[1]}
    configs = {name: _encoder_config(pipeline, name) for name in parts}
    encoders = {name: _encoder(parts[name][1], configs[name]) for name in parts}
    tokens = family.text_length or max((getattr(c, "max_position_embeddings", 0) for c in configs.values()), default=0)
    vae = _on_meta(kind, vae_config)
    size = family.size(vae, model.pixels, model.frames)
    network = (getattr(diffusers, family.network), pipeline.network_config(type(family)))
    shape = family.sample_shape(vae, size)
    _check_family(family)
    return ModelSpec(family, network, (kind, vae_config), encoders, size, shape, tokens or 77, source)


def _of_embedded(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]], source: str) -> ModelSpec:
    pipeline = untrained(config, task, seed)
    kind = families[type(pipeline).__name__]
    network, vae = getattr(pipeline, kind.component), pipeline.vae
    family = kind(dict(pipeline.config), dict(network.config))
    set_text_length(family, config)
    encoders = {name: part for name, part in pipeline.components.items() if name.startswith("text_encoder")}
    tokens = family.text_length or max(part.config.max_position_embeddings for part in encoders.values())
    counts = {name: _count(part) for name, part in encoders.items()}
    _check_family(family)
    parts = ((type(network), dict(network.config)), (type(vae), dict(vae.config)))
    return ModelSpec(family, *parts, counts, size_of(task), task.sample_shape, tokens, source)


def _encoder_config(pipeline: Pretrained, name: str) -> Any:
    with pipeline.reading(f"{name}/config.json"):
        return transformers.AutoConfig.from_pretrained(pipeline.path, subfolder=name, revision=pipeline.revision)


def _encoder(kind: str, config: Any) -> int:
    with quiet(), torch.device("meta"):
        return _count(getattr(transformers, kind)(config))


def clip_parameters(path: str, revision: str | None = None) -> int | None:
    """Number of parameters of a CLIP-like reward model; None where its config is not available."""
    local = at_home(path)
    folder = local if local.is_dir() else shipped_configs.FOLDER / shipped_configs.ENCODERS.get(path, "none")
    try:
        with quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(folder if folder.is_dir() else path, revision=revision)
            from_config: Any = transformers.AutoModel.from_config  # it has no types
            return _count(from_config(config))
    except Exception:  # hub or config errors of any kind: the plan goes on, and names what it left out
        return None


def fake_mode() -> FakeTensorMode:
    """A context in which tensors have no memory, and dispatch as the CPU's do: fused attention stays fused."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fill_with_fakes(module: nn.Module) -> None:
    """Replaces the tensors of `module` on the meta device by fake ones. Call it in `fake_mode`."""
    for part in module.modules():
        for key, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[key] = nn.Parameter(fake, parameter.requires_grad)
        for key, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype)


def build_autoencoder(spec: ModelSpec) -> nn.Module:
    """The autoencoder, on the meta device, in fp32 as it is loaded."""
    assert spec.autoencoder is not None  # noqa: S101 (called only where there is one)
    return _on_meta(*spec.autoencoder).requires_grad_(False).eval()


def _on_meta(kind: Any, config: dict[str, Any]) -> nn.Module:
    with quiet(), torch.device("meta"):
        module: nn.Module = kind.from_config(config)
    return module


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
