"""The schema of recipes. Its field descriptions are the documentation: `amd-plugin recipes schema` prints them.

Three sections choose a task, an objective or a reward by name: `data`, `objective` and `rewards`. Its options stand beside the
name and are checked against its signature, so that a plugin's options are as safe as our own.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from amd_plugin.options import Removed, Strict


class Choice(BaseModel):
    """A name, with the options of what is named."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """All keys except the fields of the section itself."""
        return dict(self.model_extra or {})

    def resolved(self, options: BaseModel | None) -> Self:
        """A copy with all of `options`, defaults included, except values that a recipe cannot hold."""
        plain = {k: v for k, v in (options or ()) if isinstance(v, str | int | float | list | tuple | None)}
        return self.model_copy(update=plain)


class DataConfig(Choice):
    """The task, with its options."""

    task: str = Field(
        description="name of the task: modes2d, digits, moving_digits, scenes, or prompts for a data set of your own"
    )


class ObjectiveConfig(Choice):
    """The objective, with its options."""

    name: str = Field(description="name of an objective of any installed plugin: dmd, decoupled_dmd, amd, ...")


MOST_SAMPLES = 10_000_000  # of an evaluation, whose labels and latents are kept
LONGEST_WAIT = 1e8  # seconds of a time limit: three years; the operating system's own clocks end at some hundred

# Parameters of a reward's factory that the host fills in.
REWARD_CONTEXT = ("task", "plugins")
# An option of a reward that is itself the entry of a reward: its name, beside its options.
WrappedReward = Annotated[dict[str, Any], Field(json_schema_extra={"wraps": "reward"})]


class RewardConfig(Choice):
    """One reward, with its options.

    If the reward itself has an option with the name of a key below, the value goes to the reward and not to the host.
    """

    name: str = Field(description="name of a reward of any installed plugin: classifier, random, ...")
    weight: float = Field(1.0, description="weight of the reward in the sum of rewards; 0: only logged")
    on_error: Literal["raise", "neutral"] = Field(
        "raise",
        description="action when a call raises, returns anything but one number per sample, times out, or its process dies; "
        "raise: stop the run with a checkpoint; neutral: give that process's batch advantage 0 and count it. Single samples "
        "without a finite score always get advantage 0 and are counted",
    )
    timeout: float | None = Field(None, gt=0, le=LONGEST_WAIT, description="time limit of a call, in seconds; by default none")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="device of the reward: auto (the student's), cpu, cuda:N"
    )
    offload: bool = Field(False, description="offloading of the reward's weights to host memory between calls")
    pool: int = Field(
        0,
        ge=0,
        le=1000,
        description="number of the reward's worker processes per training process; it then runs during fake-score updates",
    )

    def factory_options(self, takes: Iterable[str]) -> dict[str, Any]:
        """The recipe's options for a factory with the parameters `takes`."""
        own = {key: getattr(self, key) for key in self.host_keys & set(takes) & self.model_fields_set}
        return {**self.options, **own}

    @property
    def here(self) -> Self:
        """A copy without worker processes: an evaluation calls each reward once, and waits."""
        return self.model_copy(update={"pool": 0})

    @property
    def host_keys(self) -> set[str]:
        """Keys of the host, unless the reward has an option of that name."""
        return {"timeout", "device", "offload", "pool"}


class TeacherConfig(Strict):
    """Training of an embedded task's teacher. It is trained once, and cached under all settings that determine it."""

    steps: int = Field(description="number of updates", ge=1)
    batch_size: int = Field(256, description="number of samples per update", ge=1)
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate, after a warm-up")
    decay: Literal["cosine", "late"] = Field(
        "cosine", description="learning rate after warm-up; cosine: falls from the beginning; late: falls in the last two "
        "fifths, and an interrupted or longer training goes on where the rate was constant",
    )  # fmt: skip
    drop_label: float = Field(0.1, ge=0, lt=1, description="share of training samples without their label, for guidance")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of the average of its weights, which is the teacher; 0: the last ones"
    )
    text: Literal["frozen", "trained"] = Field(
        "frozen", description="weights of a pipeline's text encoders; frozen: random; trained: together with the network"
    )
    seed: int | None = Field(None, ge=0, description="seed of the teacher; by default train.seed, one teacher for each")


class LoraConfig(Strict):
    """LoRA adapters, for the roles that are not full networks; alpha equals the rank."""

    rank: int = Field(64, ge=1, description="rank of each adapter")
    target_modules: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"], min_length=1,
        description="name endings of the layers with an adapter; by default those of attention and feed-forward",
    )  # fmt: skip


def _or_a_path(schema: dict[str, Any]) -> None:
    """Lets the JSON Schema of a model take a path in place of an object, as its validator does."""
    whole = dict(schema)
    schema.clear()
    schema |= {"anyOf": [{"type": "string", "minLength": 1}, whole]}


class LoraFile(Strict):
    """A LoRA file, in the names of diffusers, of kohya, or of Wan's original code; a path alone stands for a weight of 1."""

    model_config = ConfigDict(json_schema_extra=_or_a_path)

    path: str = Field(min_length=1, description="safetensors file, folder with one, or hub id (owner/name, owner/name/file)")
    weight: float = Field(1.0, description="weight of the LoRA; 1: as it was trained")
    revision: str | None = Field(None, description="revision of the hub repository; a commit hash pins it")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


Edge = Annotated[int, Field(ge=1)]


class ModelConfig(Strict):
    """Teacher, student and fake score: loaded from a diffusers pipeline (`path`), or built for an embedded task (`network`)."""

    path: str | None = Field(None, description="folder of a diffusers pipeline, or its hub id (owner/name)")
    revision: str | None = Field(None, description="revision of the hub repository; a commit hash pins it")
    variant: str | None = Field(None, description="variant of the weight files, e.g. fp16")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="dtype of frozen weights; trained ones are always fp32")
    pipeline: str | None = Field(None, description="class name of the pipeline; a pipeline of another class is refused")
    pixels: Annotated[
        tuple[Edge, Edge] | None, Field(description="size of samples, [height, width]; by default the pipeline's training size")
    ] = None
    frames: int | None = Field(None, ge=1, description="number of frames of a video")
    reward_pixels: Annotated[
        tuple[Edge, Edge] | None,
        Field(description="decoded size for training rewards, [height, width]; latents are shrunk first, which loses detail"),
    ] = None
    negative_prompt: str = Field("", description="negative prompt of the teacher's unconditional branch")
    text_length: int | None = Field(None, ge=1, description="padded length of prompts in tokens, if the pipeline has a choice")
    decoder: str | None = Field(None, description="folder or hub id of an AutoencoderTiny, a faster decoder for rewards")
    student_from: str | None = Field(None, description="pipeline with the student's initial network; by default the teacher's")
    fake_score_from: str | None = Field(
        None, description="folder of a run, or of one of its checkpoints, with the initial fake score; by default the teacher"
    )

    network: Literal["mlp", "dit", "sdxl", "wan"] | None = Field(
        None,
        description="network class of an embedded task: mlp for points, dit or sdxl (diffusers' classes) for images, "
        "wan for videos",
    )
    width: int = Field(
        64, ge=1, description="hidden channels of an embedded network; dit, wan: over all heads; sdxl: at full resolution"
    )
    depth: int = Field(2, ge=1, description="number of blocks of an embedded network")
    heads: int = Field(2, ge=1, description="number of attention heads of an embedded network")
    patch_size: int = Field(2, ge=1, description="pixels per token in each direction, for an embedded dit or wan")
    teacher: TeacherConfig | None = Field(None, description="training of an embedded network's teacher")

    student_steps: int = Field(1, ge=1, description="number of sampling steps of the student; sets the exported scheduler")
    transition: Literal["sde", "ode"] = Field(
        "sde", description="transition between sampling steps; sde: noise x0 anew; ode: follow the predicted noise"
    )
    shift: float | None = Field(None, gt=0, description="shift of a flow schedule; by default the teacher's")

    rung_conditioning: bool | None = Field(
        None, description="conditioning of the fake score on the exit step; without it the fake score fits the mixture of all "
        "steps. By default on for students of several steps",
    )  # fmt: skip

    roles: Literal["separate", "shared_base"] = Field(
        "separate", description="weights of the roles; shared_base: one copy, with student and fake score as adapters on it"
    )
    student: Literal["full", "lora"] = Field("full", description="trained part of the student, if the roles are separate")
    fake_score: Literal["full", "lora"] = Field("full", description="trained part of the fake score, if the roles are separate")
    lora: LoraConfig = Field(default_factory=lambda: LoraConfig(), description="shape of the LoRA adapters")
    teacher_lora: LoraFile | None = Field(
        None, description="LoRA that is merged into the teacher, text encoders included, from which all roles then start"
    )
    student_lora: LoraFile | None = Field(None, description="LoRA from which the student starts, on top of the teacher's")
    fake_score_lora: LoraFile | None = Field(None, description="LoRA from which the fake score starts, on top of the teacher's")
    distilled_teacher: bool = Field(
        False, description="acceptance of a teacher that looks like a few-step student, whose guidance is built in"
    )
    keep_embeddings: bool = Field(True, description="disk cache of prompt embeddings, so that text encoders can leave memory")


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The distillation run. A cycle is `fake_updates` updates of the fake score and one update of the student."""

    REMOVED: ClassVar[Mapping[str, Removed]] = {
        "reuse_rollouts": Removed(False, "set train.rollouts: harvest, which shares all samples of a cycle among its updates"),
    }

    max_steps: int = Field(ge=1, description="number of student updates")
    seed: int = Field(
        0, ge=0, description="seed of all randomness, the teacher's training included; prompts have one order for all seeds"
    )
    batch_size: int = Field(ge=1, description="number of samples per update, over all processes and accumulation steps")
    group_size: int = Field(1, ge=1, description="number of samples per prompt and batch, for group advantages")
    accumulation: int = Field(1, ge=1, description="number of micro-batches per update and process")
    fake_updates: int = Field(3, ge=1, description="number of fake-score updates per student update")
    rollouts: Literal["auto", "fresh", "harvest"] = Field(
        "auto",
        description="student samples of a cycle; fresh: each update rolls out its own, to one exit step; harvest: rollouts "
        "through all steps, whose samples all updates of the cycle share: fewer network calls and rewards; auto: harvest for "
        "students of several steps, from noise",
    )
    rollout_sets: int = Field(
        1, ge=1, description="number of rollouts of the whole batch per cycle, where they are harvested; more: fresher samples"
    )
    student_lr: float = Field(gt=0, description="peak learning rate of the student's Adam")
    fake_lr: float = Field(gt=0, description="peak learning rate of the fake score's Adam")
    outcome_lr: float = Field(
        5e-3,
        gt=0,
        description="peak learning rate of the tables of outcomes, which advantage guidance adds to the fake score",
    )
    rollout: Literal["simulate", "data"] = Field(
        "simulate",
        description="input of the student at its exit step; simulate: its own rollout from noise; data: noised real samples",
    )
    real: Literal["data", "teacher"] = Field(
        "data",
        description="source of real samples for `rollout: data` and adversarial losses; data: the task's data; teacher: "
        "samples of the teacher, drawn once",
    )
    teacher_samples: int = Field(512, ge=1, description="number of teacher samples, with `real: teacher`")
    discriminator_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the discriminator's Adam; by default the fake score's"
    )
    gradient_checkpointing: bool = Field(False, description="recomputation of activations: less memory, a third more time")
    compile: bool = Field(False, description="compilation of all networks with torch.compile")
    betas: Annotated[tuple[Share, Share], Field(description="betas of Adam")] = (0.0, 0.99)
    warmup_steps: int = Field(0, ge=0, description="number of student updates with linear warm-up")
    decay: Literal["constant", "linear"] = Field("constant", description="learning rate after warm-up; linear: ends at a tenth")
    clip_norm: float = Field(10.0, gt=0, description="largest gradient norm; larger gradients are clipped to it")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the student's EMA, which is evaluated and exported")
    sigma: Annotated[
        tuple[float, float], Field(description="range [low, high] of re-noising levels, as fractions of the schedule")
    ] = (0.02, 0.98)
    sub_interval: bool = Field(False, description="re-noising of a step's samples to levels above that of the next step only")
    log_every: int = Field(10, ge=1, description="number of student updates between lines of metrics.jsonl")
    evaluate_every: int = Field(
        0, ge=0, description="number of student updates between held-out evaluations; 0: one at the end only"
    )
    checkpoint_every: int = Field(0, ge=0, description="number of student updates between checkpoints; 0: one at the end only")
    keep_checkpoints: int = Field(2, ge=1, description="number of checkpoints to keep, the newest")
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="aggregation of several rewards; sum_then_normalize: their weighted sum; normalize_then_sum: each is "
        "normalised first, so that it counts by its weight whatever its unit (GDPO)",
    )
    max_failed_rewards: float = Field(
        0.5, gt=0, le=1, description="largest share of samples on which a reward may fail before the run stops; 1: never stop"
    )
    failed_rewards_window: int = Field(
        50, ge=1, description="number of scored batches for the share of failed samples; earlier, no run stops for it"
    )
    on_nonfinite: Literal["raise", "skip"] = Field(
        "raise",
        description="action when the gradient of an update is NaN or infinite; the update is left out in any case, and dumped "
        "for `amd-plugin replay`; raise: stop the run with a checkpoint; skip: go on, and count it",
    )
    max_skipped: int = Field(
        10, ge=0, description="largest number of skipped updates within 1,000 steps before the run stops all the same"
    )
    stop_on_hacking: bool = Field(
        False, description="end of the run, with a checkpoint, when the reward-hacking alarm triggers; false: a warning only"
    )
    fake_warmup: int = Field(
        0, ge=0, description="number of fake-score updates before the student's first, for a student that starts elsewhere"
    )
    trackers: list[str] = Field(["tensorboard"], description="trackers, by their names in accelerate's log_with; [] for none")
    project: str = Field("amd-plugin", pattern=r"^\w[\w .-]*$", description="name of the project in the trackers")
    run_name: str | None = Field(
        None, pattern=r"^\w[\w .-]*$", description="name of the run in the trackers; by default that of its folder"
    )

    def harvests(self, student_steps: int) -> bool:
        """Whether the rollouts of a student of `student_steps` steps are harvested."""
        return self.rollouts == "harvest" or (self.rollouts == "auto" and student_steps > 1 and self.rollout == "simulate")


class FeaturesConfig(Strict):
    """The vision model whose features are compared, for tasks without a judge of their own."""

    path: str = Field(description="folder or hub id of a transformers vision model: CLIP, DINOv2, ...")
    revision: str | None = Field(None, description="revision of the vision model on the hub; a commit hash pins it")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="dtype of the vision model's weights")
    batch_size: int = Field(32, ge=1, description="number of images or frames per forward pass")


class EvaluateConfig(Strict):
    """Held-out evaluation: nothing here is used in training. At least one metric or reward is needed."""

    samples: int = Field(2000, ge=10, le=MOST_SAMPLES, description="number of student samples, balanced over the classes")
    batch_size: int | None = Field(None, ge=1, description="number of samples per batch; by default all at once")
    held_out: list[str] = Field([], description="held-out metrics of the task, to judge the run")
    rewards: list[RewardConfig] = Field([], description="held-out rewards, to judge the run; training rewards are refused")
    features: FeaturesConfig | None = Field(None, description="vision model for the feature metrics of `amd-plugin evaluate`")
    fps: int = Field(16, ge=1, description="frames per second of written videos")


class DistributedConfig(Strict):
    """Devices and sharding; the launcher sets the number of processes."""

    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="precision of accelerate's autocast; not fp16, whose scaling of losses leaves updates out"
    )
    device: Literal["auto", "cpu"] = Field("auto", description="device of the run; cpu: no GPU is used")
    teacher: Literal["none", "zero3", "zero3_offload"] = Field(
        "none", description="placement of the frozen teacher; none: a whole copy on every process; zero3: sharded over "
        "processes with DeepSpeed ZeRO-3; zero3_offload: sharded, in host memory",
    )  # fmt: skip
    trained: Literal["none", "zero2", "zero3"] = Field(
        "none", description="placement of student and fake score; none: whole on every process; zero2: DeepSpeed engines with "
        "sharded gradients and optimizer; zero3: with sharded weights, too",
    )  # fmt: skip
    timeout: float | None = Field(
        None, gt=0, le=LONGEST_WAIT, description="longest wait of a process for another one, in seconds, before the run fails; "
        "by default torch's own, 10 minutes on GPUs and 30 on CPUs",
    )  # fmt: skip


class RecipeConfig(Strict):
    """A whole recipe."""

    model: ModelConfig
    data: DataConfig
    objective: ObjectiveConfig
    rewards: list[RewardConfig] = Field([], description="training rewards; needed by objectives that use rewards")
    train: TrainConfig
    evaluate: EvaluateConfig
    distributed: DistributedConfig = Field(default_factory=lambda: DistributedConfig())

    @property
    def own_teachers(self) -> bool:
        """Whether each training seed has a teacher of its own."""
        return self.model.teacher is not None and self.model.teacher.seed is None
