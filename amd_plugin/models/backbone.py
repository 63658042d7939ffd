"""The teacher of a run with all that belongs to it, whether it is a pipeline on disk or made here for an embedded task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from amd_plugin.config import ModelConfig, RecipeConfig
from amd_plugin.errors import InputError, OptionError
from amd_plugin.models.conditions import Conditions, LabelConditions, PromptConditions
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.embedded.pipelines import pipeline_folder, set_text_length, size_of, untrained
from amd_plugin.models.embedded.teacher import teacher as trained_teacher
from amd_plugin.models.family import Family, Size
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.models.pretrained import DTYPES, Pretrained
from amd_plugin.schedule import few_step_scheduler
from amd_plugin.schedule.noise import flow_shift, is_flow

if TYPE_CHECKING:
    from amd_plugin.tasks import Task


@dataclass
class Backbone:
    """What all roles start from.

    Attributes:
        family: how networks are called.
        network: the teacher's, frozen, on the CPU; on the meta device where it is to be sharded as it is read.
        scheduler: the few-step scheduler that is trained for and exported.
        shift: of the flow schedule at which networks are compared.
        sample_shape: of one sample, as the networks see it.
        conditions: what is asked for, as tensors.
        decode: latents [B, ...] -> media for rewards.
        encode: media [B, 3, ...] in [-1, 1] -> latents; None where samples are no latents.
        student: the network students start from, if not the teacher's.
        read: values of parameters on the meta device, by name.
        pretrained: the pipeline it comes from, None for a network that is no part of one.
        size: of decoded samples, likewise.
    """

    family: Any
    network: nn.Module
    scheduler: Any
    shift: float
    sample_shape: tuple[int, ...]
    conditions: Conditions
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor] | None = None
    student: nn.Module | None = None
    read: TensorReader | None = None
    pretrained: Pretrained | None = None
    size: Size | None = None
    autoencoders: tuple[nn.Module, ...] = ()

    def use_on(self, task: Task, device: torch.device) -> None:
        """Places what decodes, and hands it to the task, whose samples are this model's latents."""
        if self.pretrained is not None and self.size is not None:
            for module in self.autoencoders:
                module.to(device)
            task.use(self.decode, self.size)

    def embed_prompts(self, task: Task, rows: int, config: RecipeConfig, accelerator: Any) -> None:
        """Has all prompts of a run that asks for so many rows embedded, each process its share, before training starts."""
        if not isinstance(self.conditions, PromptConditions):
            return
        asked = task.asked_for(rows, config.evaluate.samples)
        self.conditions.prepare(asked, accelerator.device, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()


def load(
    config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]], *, sharded: bool = False
) -> Backbone:
    """Everything a run needs of its model; trains an embedded task's teacher where it is not cached.

    Args:
        config: the recipe's model section.
        task: what it is for.
        seed: of an embedded task's teacher.
        families: by pipeline class.
        sharded: leave a pipeline's network on the meta device, to be read as it is sharded.

    Raises:
        InputError: for whatever cannot be used; OptionError where one key of the section is to blame.
    """
    if config.network in ("mlp", "dit"):
        network = trained_teacher(config, task, seed)
        return Backbone(
            ClassConditional(), network, _few_step(config), config.shift or 1.0, task.sample_shape,
            LabelConditions(task.num_classes), task.decode,
        )  # fmt: skip
    if config.path is None:
        height, width, frames = size_of(task)
        made_here = config.model_copy(update={"pixels": (height, width), "frames": frames})
        return _of_pipeline(Pretrained(str(pipeline_folder(config, task, seed, families))), made_here, families, sharded)
    found = _of_pipeline(pretrained(config), config, families, sharded)
    if task.num_classes and found.sample_shape != task.sample_shape:
        what = f"samples of {task.name} have shape {task.sample_shape}, and this pipeline's latents {found.sample_shape}"
        raise OptionError("path", what)
    return found


def outline(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> tuple[nn.Module, Any]:
    """(network without what it has learnt, few-step scheduler), before anything is trained or any weights are read.

    Raises:
        InputError: like `load`, for what can be seen so far.
    """
    if config.path is not None:
        family, scheduler = check(config, families)
        with torch.device("meta"):
            return pretrained(config).empty_network(family), scheduler
    if config.network in ("mlp", "dit"):
        return build_network(config, task, seed), _few_step(config)
    pipeline = untrained(config, task, seed)
    family = families[type(pipeline).__name__]
    return getattr(pipeline, family.component), _few_step(config, pipeline.scheduler, family.scales_input)


def check(config: ModelConfig, families: Mapping[str, type[Family]]) -> tuple[Any, Any]:
    """(family, few-step scheduler) of a pipeline on disk or on the hub, before any weights are read.

    Raises:
        InputError: like `load`.
    """
    where = pretrained(config)
    family = where.family(families)
    if config.pipeline not in (None, family.pipeline):
        raise OptionError("path", f"the recipe is for a {config.pipeline}, and {config.path} is a {family.pipeline}")
    return family, _few_step(config, where.scheduler(), family.scales_input)


def pretrained(config: ModelConfig) -> Pretrained:
    """Where the recipe's pipeline is."""
    return Pretrained(str(config.path), config.revision, config.variant)


def _of_pipeline(where: Pretrained, config: ModelConfig, families: Mapping[str, type[Family]], sharded: bool) -> Backbone:
    family = where.family(families)
    dtype = DTYPES[config.dtype]
    scheduler = _few_step(config, where.scheduler(), family.scales_input)
    vae = where.autoencoder(family)
    size = family.size(vae, config.pixels, config.frames)
    shape = family.sample_shape(vae, size)
    _check_channels(where, vae, shape[0])
    set_text_length(family, config)
    decoder = vae if config.decoder is None else _decoder(config.decoder, family)
    conditions = PromptConditions(
        lambda: where.text_parts(family, dtype),
        lambda pipeline, prompts, negative: family.encode_prompts(pipeline, prompts, negative, size),
        config.negative_prompt,
        {"encoders": where.fingerprint(), "dtype": config.dtype, "size": size, "length": config.text_length,
         "diffusers": diffusers.__version__, "transformers": transformers.__version__},
        config.keep_embeddings,
    )  # fmt: skip
    network, read = where.outlined_network(family, dtype) if sharded else (where.network(family, dtype), None)
    student = None
    if config.student_from is not None:
        student = _student_from(config.student_from, network, family, families)
    shift = config.shift or (flow_shift(where.scheduler()) if is_flow(scheduler) else 1.0)
    return Backbone(
        family, network, scheduler, shift, shape, conditions,
        lambda latents: family.decode(decoder, latents.to(next(decoder.parameters()).device, torch.float32)),
        lambda media: family.encode_media(vae, media.float()), student, read, where, size, (vae, decoder),
    )  # fmt: skip


def _few_step(config: ModelConfig, teacher: Any = None, scales_input: bool = False) -> Any:
    how = {"transition": config.transition, "shift": config.shift, "scales_input": scales_input}
    return few_step_scheduler(config.student_steps, teacher, **how)


def _check_channels(where: Pretrained, vae: nn.Module, channels: int) -> None:
    latent = vae.config.get("latent_channels") or vae.config.get("z_dim")
    if latent != channels:
        raise InputError(
            f"{where.key}: {where.path}: the network takes latents of {channels} channels, and the autoencoder makes {latent}"
        )


def _decoder(path: str, family: Any) -> nn.Module:
    """A faster autoencoder for rewards: an `AutoencoderTiny` folder or hub id; for videos, one of the family's own class."""
    kind = family.autoencoder if family.video else "AutoencoderTiny"
    return Pretrained(path, key="model.decoder").part(kind, torch.float32)


def _student_from(path: str, teacher: nn.Module, family: Any, families: Mapping[str, type[Family]]) -> nn.Module:
    other = Pretrained(path, key="model.student_from")
    found = other.family(families)
    if found.network != family.network:
        what = f"is a {found.network}, and the teacher a {family.network}; student and teacher must be of one class"
        raise OptionError("student_from", f"{path} {what}")
    network = other.network(found, teacher.dtype)
    mine, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (network, teacher))
    if mine != theirs:
        name = next(n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n))
        what = f"{name} is {mine.get(name)} there and {theirs.get(name)} in the teacher; their configs must be the same"
        raise OptionError("student_from", f"{path} does not fit: {what}")
    return network
