"""What a recipe may say. Field descriptions are the documentation: `amd-plugin recipes schema` prints them.

Sections that choose something by name (`data`, `objective`, `rewards`) carry its options beside the name; those are checked
against the signature of what was chosen, so that a plugin's options are as safe as our own.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import Self

from amd_plugin.errors import InputError


class Strict(BaseModel):
    """No unknown keys, no NaN, no conversion between text, numbers and booleans."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class _Open(Strict):
    """Any further key too: what a factory with ``**options`` takes."""

    model_config = ConfigDict(extra="allow")


class Choice(BaseModel):
    """A name with the options of what it names."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """Everything beside the fields of the section itself."""
        return dict(self.model_extra or {})

    def resolved(self, options: BaseModel | None) -> Self:
        """The same with all of `options`, defaults included, except those that no recipe can hold."""
        plain = {k: v for k, v in (options or ()) if isinstance(v, str | int | float | list | tuple | None)}
        return self.model_copy(update=plain)


class DataConfig(Choice):
    """Which embedded task, with its options."""

    task: str = Field(description="modes2d or digits")


class ObjectiveConfig(Choice):
    """Which objective, with its options."""

    name: str = Field(description="an objective of any installed plugin: dmd, decoupled_dmd, amd, ...")


class RewardConfig(Choice):
    """One reward, with its options."""

    name: str = Field(description="a reward of any installed plugin: classifier, random, ...")
    weight: float = Field(1.0, description="its factor in the sum of rewards")
    on_error: Literal["raise", "neutral"] = Field(
        "raise", description="when it raises: stop the run with a checkpoint, or give the batch advantage 0 and count it"
    )


class TeacherConfig(Strict):
    """How the embedded task's teacher is trained, here and once: it is cached by everything that makes it."""

    steps: int = Field(description="updates", ge=1)
    batch_size: int = Field(256, description="samples per update", ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="peak of a cosine schedule with warm-up")
    drop_label: float = Field(0.1, ge=0, lt=1, description="share of samples shown without label, for guidance")


class ModelConfig(Strict):
    """The network that teacher, student and fake score share."""

    network: Literal["mlp", "dit"] = Field(description="mlp for points, dit (diffusers DiTTransformer2DModel) for images")
    width: int = Field(ge=1, description="hidden channels; dit: over all heads")
    depth: int = Field(ge=1, description="blocks")
    heads: int = Field(2, ge=1, description="dit: attention heads")
    patch_size: int = Field(2, ge=1, description="dit: pixels per token, in each direction")
    student_steps: int = Field(1, ge=1, le=8, description="steps of the distilled student; sets the exported scheduler")
    teacher: TeacherConfig


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The distillation run. One cycle is `fake_updates` updates of the fake score and one of the student."""

    max_steps: int = Field(ge=1, description="student updates")
    seed: int = Field(0, ge=0, description="of everything random, the teacher's training included")
    batch_size: int = Field(ge=1, description="samples per update, over all processes and accumulation steps")
    group_size: int = Field(1, ge=1, description="samples per prompt and batch, for group advantages")
    accumulation: int = Field(1, ge=1, description="micro-batches per update and process")
    fake_updates: int = Field(3, ge=1, description="fake-score updates per student update")
    student_lr: float = Field(gt=0, description="Adam's peak learning rate")
    fake_lr: float = Field(gt=0, description="Adam's peak learning rate")
    betas: Annotated[tuple[Share, Share], Field(description="Adam's betas")] = (0.0, 0.99)
    warmup_steps: int = Field(0, ge=0, description="student updates of linear warm-up")
    decay: Literal["constant", "linear"] = Field("constant", description="after warm-up; linear ends at a tenth")
    clip_norm: float = Field(10.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the student's average, which is evaluated and exported")
    sigma: Annotated[tuple[float, float], Field(description="re-noising levels, as fractions of the schedule")] = (0.02, 0.98)
    log_every: int = Field(10, ge=1, description="student updates between lines of metrics.jsonl")
    evaluate_every: int = Field(0, ge=0, description="student updates between held-out evaluations; 0: at the end only")
    checkpoint_every: int = Field(0, ge=0, description="student updates between checkpoints; 0: at the end only")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    trackers: list[str] = Field(["tensorboard"], description="names for accelerate's log_with; [] for none")


class EvaluateConfig(Strict):
    """Held-out evaluation: nothing here was trained on."""

    samples: int = Field(2000, ge=10, description="student samples, balanced over the classes")
    held_out: list[str] = Field(min_length=1, description="metrics of the task that judge the run")


class DistributedConfig(Strict):
    """Devices and processes; the launcher decides how many."""

    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="accelerate's autocast")
    device: Literal["auto", "cpu"] = Field("auto", description="cpu keeps a GPU out of it")


class RecipeConfig(Strict):
    """A whole recipe."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    rewards: list[RewardConfig] = Field([], description="training rewards; needed by objectives that listen to one")
    train: TrainConfig
    evaluate: EvaluateConfig
    distributed: DistributedConfig = Field(default_factory=lambda: DistributedConfig())


def options_model(factory: Callable[..., Any], *, ignore: tuple[str, ...] = ()) -> type[BaseModel]:
    """A strict model of `factory`'s keyword parameters, from its signature: names, annotations, defaults.

    Args:
        factory: any callable; a parameter without annotation takes anything.
        ignore: parameters that the host fills in.

    Raises:
        InputError: if the signature's annotations cannot be evaluated.
    """
    fields: dict[str, Any] = {}
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except Exception as error:
        raise InputError(f"the signature of {factory!r} cannot be read: {type(error).__name__}: {error}") from error
    for parameter in parameters:
        if parameter.name in ignore or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[parameter.name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    try:
        return create_model("Options", __base__=_Open if open_ended else Strict, **fields)
    except Exception as error:
        raise InputError(f"the parameters of {factory!r} cannot be checked: {error}") from error
