"""The teacher of a run and its surroundings: a diffusers pipeline, or a network trained here for an embedded task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from amd_plugin.config import ModelConfig, RecipeConfig
from amd_plugin.errors import InputError, OptionError
from amd_plugin.models import prompt_lengths
from amd_plugin.models.conditions import Conditions, LabelConditions, PromptConditions
from amd_plugin.models.distilled import check_teacher
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.embedded.pipelines import pipeline_folder, set_text_length, size_of, untrained
from amd_plugin.models.embedded.teacher import teacher_seed, trained_teacher
from amd_plugin.models.family import Family, Size
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.models.lora_files import Layers, LoraSource
from amd_plugin.models.pretrained import Pretrained
from amd_plugin.schedule import few_step_scheduler
from amd_plugin.schedule.noise import flow_shift, is_flow
from amd_plugin.tasks import Task


@dataclass
class Backbone:
    """What all roles start from.

    Attributes:
        family: calling convention of the networks.
        network: the teacher's network, frozen, on the CPU; on the meta device where it is sharded while it is read.
        scheduler: the few-step diffusers scheduler that training follows and the export contains.
        shift: shift of the flow schedule at which teacher and fake score are compared.
        sample_shape: shape of one sample as the networks see it.
        conditions: labels or prompts as tensors for the networks.
        decode: samples [B, ...] -> media for rewards and metrics; differentiable. Nothing else in a run decodes.
        encode: media [B, 3, ...] in [-1, 1] -> latents; None where samples are no latents.
        student: the network that students start from; None for the teacher's.
        read: reader of parameters on the meta device, by name.
        pretrained: the pipeline that the network comes from; None for a network outside a pipeline.
        size: size of decoded samples; None for a network outside a pipeline.
        autoencoders: modules that `decode` and `encode` call.
        loras: readers of the layers that roles start from, by role.
    """

    family: Family | ClassConditional
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
    loras: Mapping[str, Callable[[], Layers]] = field(default_factory=dict)

    @torch.no_grad()
    def decode_in_parts(self, samples: Tensor, batch_size: int | None) -> Tensor:
        """Media of `samples` [B, ...], on the CPU; `batch_size` samples are decoded at a time, all at once where None."""
        return torch.cat([self.decode(part).cpu() for part in samples.split(batch_size or len(samples))])

    def move_autoencoders(self, device: torch.device) -> None:
        """Moves the modules that decode and encode to `device`."""
        for module in self.autoencoders:
            module.to(device)

    def embed_prompts(self, task: Task, rows: int, config: RecipeConfig, accelerator: Accelerator) -> None:
        """Embeds all prompts of a run that asks for `rows` rows of prompts, each process its share, before training starts."""
        if not isinstance(self.conditions, PromptConditions):
            return
        prompts = task.asked_for(rows, config.evaluate.samples)
        self.conditions.prepare(prompts, accelerator.device, accelerator.process_index, accelerator.num_processes)
        longer = gather_object([self.conditions.longer])
        if accelerator.is_main_process and config.model.keep_embeddings:
            prompt_lengths.warn(prompt_lengths.total(longer))


def load_backbone(
    config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]], *, sharded: bool = False
) -> Backbone:
    """Everything a run needs of its model; trains an embedded task's teacher where it is not cached.

    Args:
        config: the recipe's model section.
        task: the recipe's task.
        seed: seed of an embedded task's teacher.
        families: registered families by pipeline class.
        sharded: leave a pipeline's network on the meta device, to be read while it is sharded.

    Raises:
        InputError: for whatever cannot be used; OptionError where one key of the section is to blame.
    """
    seed = teacher_seed(config, seed)
    if config.network in ("mlp", "dit"):
        network = trained_teacher(config, task, seed)
        return Backbone(
            ClassConditional(), network, _few_step(config), config.shift or 1.0, task.sample_shape,
            LabelConditions(task.num_classes), task.to_media,
        )  # fmt: skip
    if config.path is None:
        height, width, frames = size_of(task)
        config_here = config.model_copy(update={"pixels": (height, width), "frames": frames})
        folder = pipeline_folder(config, task, seed, families)
        return _of_pipeline(Pretrained(str(folder)), config_here, task, families, sharded)
    check_backbone(config, families)
    backbone = _of_pipeline(pretrained(config), config, task, families, sharded)
    if task.num_classes and backbone.sample_shape != task.sample_shape:
        shapes = f"samples of {task.name} have shape {task.sample_shape}, and this pipeline's latents {backbone.sample_shape}"
        raise OptionError("path", shapes)
    return backbone


def meta_backbone(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> tuple[nn.Module, Any]:
    """(untrained network, few-step scheduler), before anything is trained or any weights are read.

    The network of a pipeline is on the meta device; one that is made here is small, and on the CPU.

    Raises:
        InputError: like `load_backbone`, for what can be seen so far.
    """
    if config.path is not None:
        family, scheduler = check_backbone(config, families)
        with torch.device("meta"):
            return pretrained(config).empty_network(family), scheduler
    if config.network in ("mlp", "dit"):
        return build_network(config, task, seed), _few_step(config)
    pipeline = untrained(config, task, seed)
    kind = families[type(pipeline).__name__]
    return getattr(pipeline, kind.component), _few_step(config, pipeline.scheduler, kind.scales_input)


def check_backbone(config: ModelConfig, families: Mapping[str, type[Family]]) -> tuple[Family, Any]:
    """(family, few-step scheduler) of a pipeline on disk or on the hub, before any weights are read.

    Raises:
        InputError: like `load_backbone`.
    """
    source = pretrained(config)
    family = source.family(families)
    if config.pipeline not in (None, family.pipeline):
        raise OptionError("path", f"the recipe is for a {config.pipeline}, and {config.path} is a {family.pipeline}")
    vae = source.outlined_autoencoder(family)
    _check_channels(source, vae, family.sample_shape(vae, family.size(vae, config.pixels, config.frames))[0])
    scheduler = source.scheduler()
    for lora in (source.lora, *starting_loras(config).values()):
        if lora is not None:
            lora.check()
    if not config.distilled_teacher:
        check_teacher(source, scheduler, source.network_config(type(family)), source.lora)
    return family, _few_step(config, scheduler, family.scales_input)


def starting_loras(config: ModelConfig) -> dict[str, LoraSource]:
    """The LoRAs from which roles start, by role."""
    files = {"student": config.student_lora, "fake_score": config.fake_score_lora}
    return {role: LoraSource(file, f"{role}_lora") for role, file in files.items() if file is not None}


def pretrained(config: ModelConfig) -> Pretrained:
    """The recipe's pipeline, as a place to read from."""
    lora = None if config.teacher_lora is None else LoraSource(config.teacher_lora, "teacher_lora")
    return Pretrained(str(config.path), config.revision, config.variant, lora=lora)


def _of_pipeline(
    source: Pretrained, config: ModelConfig, task: Task, families: Mapping[str, type[Family]], sharded: bool
) -> Backbone:
    family = source.family(families)
    dtype = DTYPES[config.dtype]
    scheduler = _few_step(config, source.scheduler(), family.scales_input)
    vae = source.autoencoder(family)
    size = family.size(vae, config.pixels, config.frames)
    shape = family.sample_shape(vae, size)
    _check_channels(source, vae, shape[0])
    set_text_length(family, config)
    decoder = vae if config.decoder is None else _decoder(config.decoder, family)
    conditions = PromptConditions(
        lambda: source.text_parts(family, dtype),
        lambda pipeline, prompts, negative: family.encode_prompts(pipeline, prompts, negative, size),
        config.negative_prompt,
        {"encoders": source.fingerprint(), **({} if config.variant is None else {"variant": config.variant}),
         "dtype": config.dtype, "size": size, "length": config.text_length,
         "diffusers": diffusers.__version__, "transformers": transformers.__version__},
        config.keep_embeddings, partial(prompt_lengths.token_limits, family),
    )  # fmt: skip
    network, read = source.outlined_network(family, dtype) if sharded else (source.network(family, dtype), None)
    student = None
    if config.student_from is not None:
        student = _student_from(config.student_from, network, family, families)

    def layers(lora: LoraSource) -> Layers:
        return lora.layers(source.around(family, network), family.component)

    loras = {role: partial(layers, lora) for role, lora in starting_loras(config).items()}
    shift = config.shift or (flow_shift(source.scheduler()) if is_flow(scheduler) else 1.0)

    def decode(latents: Tensor) -> Tensor:
        media = family.decode(decoder, latents.to(next(decoder.parameters()).device, torch.float32))
        return media[:, : task.media_channels]

    return Backbone(
        family, network, scheduler, shift, shape, conditions, decode,
        lambda media: family.encode_media(vae, media.float()), student, read, source, size, (vae, decoder), loras,
    )  # fmt: skip


def _few_step(config: ModelConfig, teacher: Any = None, scales_input: bool = False) -> Any:
    return few_step_scheduler(
        config.student_steps, teacher, transition=config.transition, shift=config.shift, scales_input=scales_input
    )


def _check_channels(source: Pretrained, vae: Any, channels: int) -> None:
    latent = vae.config.get("latent_channels") or vae.config.get("z_dim")
    if latent != channels:
        raise InputError(
            f"{source.key}: {source.path}: the network takes latents of {channels} channels, and the autoencoder makes {latent}"
        )


def _decoder(path: str, family: Family) -> nn.Module:
    """A faster autoencoder for rewards: an `AutoencoderTiny` folder or hub id; for videos, one of the family's own class."""
    kind = family.autoencoder if family.video else "AutoencoderTiny"
    return Pretrained(path, key="model.decoder").part(kind, torch.float32)


def _student_from(path: str, teacher: Any, family: Family, families: Mapping[str, type[Family]]) -> nn.Module:
    source = Pretrained(path, key="model.student_from")
    students = source.family(families)
    if students.network != family.network:
        classes = f"is a {students.network}, and the teacher a {family.network}"
        raise OptionError("student_from", f"{path} {classes}; student and teacher must be of one class")
    network = source.network(students, teacher.dtype)
    if shapes := misfit(dict(network.named_parameters()), dict(teacher.named_parameters()), "the teacher"):
        raise OptionError("student_from", f"{path} does not fit: {shapes}; their configs must be the same")
    return network


def misfit(theirs: Mapping[str, Any], ours: Mapping[str, Any], name_of_ours: str) -> str:
    """The first tensor whose shapes differ, in words; empty where all are alike."""
    shapes = [{name: tuple(value.shape) for name, value in tensors.items()} for tensors in (theirs, ours)]
    for name in sorted({*theirs, *ours}):
        there, here = (part.get(name, "not") for part in shapes)
        if there != here:
            return f"{name} is {there} there and {here} in {name_of_ours}"
    return ""
