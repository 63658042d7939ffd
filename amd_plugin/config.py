"""What a recipe may say. Field descriptions are the documentation: `amd-plugin recipes schema` prints them.

Sections that choose something by name (`data`, `objective`, `rewards`) carry its options beside the name; those are checked
against the signature of what was chosen, so that a plugin's options are as safe as our own.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

from amd_plugin.options import Strict


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

    task: str = Field(description="modes2d, digits, moving_digits, or prompts: one's own")


class ObjectiveConfig(Choice):
    """Which objective, with its options."""

    name: str = Field(description="an objective of any installed plugin: dmd, decoupled_dmd, amd, ...")


class RewardConfig(Choice):
    """One reward, with its options. Of the keys below, those that the reward itself takes as an option go to it alone."""

    name: str = Field(description="a reward of any installed plugin: classifier, random, ...")
    weight: float = Field(1.0, description="its factor in the sum of rewards; 0: only logged")
    on_error: Literal["raise", "neutral"] = Field(
        "raise",
        description="when a call raises, returns something else than a number per sample, takes too long, or its process "
        "dies: stop the run with a checkpoint, or give that process's batch advantage 0 and count it; single samples "
        "without a finite number always get advantage 0 and are counted",
    )
    timeout: float | None = Field(None, gt=0, description="seconds to wait for a call; longer is an error. By default no limit")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="where it runs: auto (with the student), cpu, cuda:N"
    )
    offload: bool = Field(False, description="keep its weights in main memory between calls")
    pool: int = Field(
        0, ge=0, description="worker processes of its own, per training process: it then runs while the fake score learns"
    )

    def factory_options(self, takes: Iterable[str]) -> dict[str, Any]:
        """What a factory with the parameters `takes` is called with, as far as the recipe says."""
        own = {key: getattr(self, key) for key in self.host_keys & set(takes) & self.model_fields_set}
        return {**self.options, **own}

    @property
    def here(self) -> Self:
        """The same without worker processes: an evaluation asks once, and waits."""
        return self.model_copy(update={"pool": 0})

    @property
    def host_keys(self) -> set[str]:
        """Keys that are the host's, unless the reward takes an option of that name."""
        return {"timeout", "device", "offload", "pool"}


class TeacherConfig(Strict):
    """How the embedded task's teacher is trained, here and once: it is cached by everything that makes it."""

    steps: int = Field(description="updates", ge=1)
    batch_size: int = Field(256, description="samples per update", ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="peak of a cosine schedule with warm-up")
    drop_label: float = Field(0.1, ge=0, lt=1, description="share of samples shown without label, for guidance")


class LoraConfig(Strict):
    """Adapters of the roles that are no networks of their own; alpha equals the rank."""

    rank: int = Field(64, ge=1, description="of each adapter")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"], min_length=1,
        description="ends of the names of the layers that get one; by default attention and feed-forward",
    )  # fmt: skip


class ModelConfig(Strict):
    """Teacher, student and fake score: from a diffusers pipeline (`path`), or made here for an embedded task (`network`)."""

    path: str | None = Field(None, description="folder of a diffusers pipeline, or its hub id (owner/name)")
    revision: str | None = Field(None, description="of the hub repository; a commit hash pins it")
    variant: str | None = Field(None, description="of the weight files, e.g. fp16")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of frozen weights; trained ones are always fp32")
    pipeline: str | None = Field(None, description="the pipeline class the recipe is for; another one is refused")
    pixels: Annotated[
        tuple[int, int] | None, Field(description="[height, width]; by default what the pipeline was trained at")
    ] = None
    frames: int | None = Field(None, ge=1, description="of a video")
    reward_pixels: Annotated[
        tuple[int, int] | None,
        Field(description="[height, width] to decode at for training rewards: latents are shrunk first, and detail is lost"),
    ] = None
    negative_prompt: str = Field("", description="of the teacher's unconditional branch")
    text_length: int | None = Field(None, ge=1, description="tokens a prompt is padded to, where the pipeline lets one choose")
    decoder: str | None = Field(None, description="faster autoencoder for rewards: folder or hub id of an AutoencoderTiny")
    student_from: str | None = Field(None, description="pipeline whose network the student starts from, if not the teacher's")

    network: Literal["mlp", "dit", "sdxl", "wan"] | None = Field(
        None, description="made here: mlp for points, dit or sdxl (diffusers' classes) for images, wan for videos"
    )
    width: int = Field(
        64, ge=1, description="made here: hidden channels; dit and wan: over all heads; sdxl: at full resolution"
    )
    depth: int = Field(2, ge=1, description="made here: blocks")
    heads: int = Field(2, ge=1, description="made here: attention heads")
    patch_size: int = Field(2, ge=1, description="made here, dit and wan: pixels per token, in each direction")
    teacher: TeacherConfig | None = Field(None, description="made here: how it is trained")

    student_steps: int = Field(1, ge=1, description="steps of the distilled student; sets the exported scheduler")
    transition: Literal["sde", "ode"] = Field(
        "sde", description="between steps: noise x0 afresh, or follow the predicted noise"
    )
    shift: float | None = Field(None, gt=0, description="of a flow schedule; by default the teacher's own")

    rung_conditioning: bool | None = Field(
        None, description="tell the fake score which step's samples it is asked about: one equation per step, not one "
        "for their mixture. By default when there are several",
    )  # fmt: skip

    roles: Literal["separate", "shared_base"] = Field(
        "separate", description="shared_base: one copy of the weights, student and fake score are adapters on it"
    )
    student: Literal["full", "lora"] = Field("full", description="what is trained of it, unless roles share a base")
    fake_score: Literal["full", "lora"] = Field("full", description="likewise")
    lora: LoraConfig = Field(default_factory=lambda: LoraConfig())
    keep_embeddings: bool = Field(True, description="prompt embeddings on disk, so that text encoders can leave memory")


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The distillation run. One cycle is `fake_updates` updates of the fake score and one of the student."""

    max_steps: int = Field(ge=1, description="student updates")
    seed: int = Field(0, ge=0, description="of everything random, the teacher's training included")
    batch_size: int = Field(ge=1, description="samples per update, over all processes and accumulation steps")
    group_size: int = Field(1, ge=1, description="samples per prompt and batch, for group advantages")
    accumulation: int = Field(1, ge=1, description="micro-batches per update and process")
    fake_updates: int = Field(3, ge=1, description="fake-score updates per student update")
    reuse_rollouts: bool = Field(
        False, description="let the samples and rewards of a cycle's first fake-score update serve all of them: fewer rollouts "
        "and reward calls, for a little quality",
    )  # fmt: skip
    student_lr: float = Field(gt=0, description="Adam's peak learning rate")
    fake_lr: float = Field(gt=0, description="Adam's peak learning rate")
    rollout: Literal["simulate", "data"] = Field(
        "simulate", description="what the student sees at its exit step: what it made of noise itself, or real data noised"
    )
    real: Literal["data", "teacher"] = Field(
        "data",
        description="where real samples come from, for `rollout: data` and adversarial losses: the task's data, or "
        "samples of the teacher, made once",
    )
    teacher_samples: int = Field(512, ge=1, description="how many, with `real: teacher`")
    discriminator_lr: float | None = Field(None, gt=0, description="Adam's peak learning rate; by default the fake score's")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    compile: bool = Field(False, description="torch.compile every network")
    betas: Annotated[tuple[Share, Share], Field(description="Adam's betas")] = (0.0, 0.99)
    warmup_steps: int = Field(0, ge=0, description="student updates of linear warm-up")
    decay: Literal["constant", "linear"] = Field("constant", description="after warm-up; linear ends at a tenth")
    clip_norm: float = Field(10.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the student's average, which is evaluated and exported")
    sigma: Annotated[tuple[float, float], Field(description="re-noising levels, as fractions of the schedule")] = (0.02, 0.98)
    sub_interval: bool = Field(
        False, description="re-noise the samples of a step above the level of the next step only, down to which they are used"
    )
    log_every: int = Field(10, ge=1, description="student updates between lines of metrics.jsonl")
    evaluate_every: int = Field(0, ge=0, description="student updates between held-out evaluations; 0: at the end only")
    checkpoint_every: int = Field(0, ge=0, description="student updates between checkpoints; 0: at the end only")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="of several rewards: sum them, or give each the say of its weight whatever its unit (GDPO)",
    )
    max_failed_rewards: float = Field(
        0.5, gt=0, le=1, description="largest share of samples a reward may fail on before the run stops; 1: never stop"
    )
    failed_rewards_window: int = Field(50, ge=1, description="scored batches that share is taken over; none stops sooner")
    stop_on_hacking: bool = Field(
        False, description="stop with a checkpoint when a reward is found to be hacked, instead of only warning"
    )
    trackers: list[str] = Field(["tensorboard"], description="names for accelerate's log_with; [] for none")


class FeaturesConfig(Strict):
    """The vision model whose features samples are compared in, for tasks that bring no judge of their own."""

    path: str = Field(description="folder or hub id of a transformers vision model: CLIP, DINOv2, ...")
    revision: str | None = Field(None, description="on the hub; a commit hash pins it")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of its weights")
    batch_size: int = Field(32, ge=1, description="images or frames at a time")


class EvaluateConfig(Strict):
    """Held-out evaluation: nothing here was trained on. Needs a metric or a reward."""

    samples: int = Field(2000, ge=10, description="student samples, balanced over the classes")
    batch_size: int | None = Field(None, ge=1, description="samples drawn at a time; by default all at once")
    held_out: list[str] = Field([], description="metrics of the task that judge the run")
    rewards: list[RewardConfig] = Field([], description="rewards that judge the run and are not trained on")
    features: FeaturesConfig | None = Field(None, description="what `amd-plugin evaluate` compares samples in")
    fps: int = Field(16, ge=1, description="frames per second of videos that are written")


class DistributedConfig(Strict):
    """Devices and processes; the launcher decides how many."""

    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="accelerate's autocast")
    device: Literal["auto", "cpu"] = Field("auto", description="cpu keeps a GPU out of it")
    teacher: Literal["none", "zero3", "zero3_offload"] = Field(
        "none", description="how the frozen teacher is kept: a whole copy on every process, sharded over them with DeepSpeed "
        "ZeRO-3, or sharded and kept in host memory",
    )  # fmt: skip
    trained: Literal["none", "zero2", "zero3"] = Field(
        "none", description="how student and fake score are kept: whole on every process, or as DeepSpeed engines that share "
        "out gradients and optimizer (zero2), the weights too (zero3)",
    )  # fmt: skip
    timeout: float | None = Field(
        None, gt=0, description="seconds that processes wait for one of them before the run fails; by default torch's own, "
        "10 minutes on GPUs and 30 on CPUs",
    )  # fmt: skip


class RecipeConfig(Strict):
    """A whole recipe."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    rewards: list[RewardConfig] = Field([], description="training rewards; needed by objectives that listen to one")
    train: TrainConfig
    evaluate: EvaluateConfig
    distributed: DistributedConfig = Field(default_factory=lambda: DistributedConfig())
