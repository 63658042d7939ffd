"""Tiny runs of LightX2V's own example YAMLs: its real Wan network, VAE, data set and trainers."""

import contextlib
import functools
import json
import logging
import tempfile
from pathlib import Path

import conftest  # noqa: F401  # declares torchvision's operators before anything imports it
import lightx2v_train
import pytest
import torch
from lightx2v_train.data import build_data
from lightx2v_train.model_zoo import build_model
from lightx2v_train.runtime import load_config
from lightx2v_train.trainers.dmd.trainer import DmdTrainer
from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer
from lightx2v_train.trainers.dmd.video_trainer import VideoDmdTrainer
from lightx2v_train.trainers.phased_dmd.trainer import VideoPhasedDmdTrainer
from loguru import logger

from amd_plugin.adapters import lightx2v as adapter
from amd_plugin.adapters.lightx2v_trainer import Adaptive
from amd_plugin.testing.adapter import ReorderedDraws, Trace

with pytest.MonkeyPatch.context() as patch:
    # The text encoder's module, which is not used here, asks for the current GPU when it is imported.
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    from lightx2v_train.model_zoo.native.wan.modules import attention, causal_model, model, vae

logger.remove()  # the host logs its networks' structures
logging.getLogger("diffusers").setLevel(logging.ERROR)

# FlashAttention needs a GPU; the host has a fallback for machines without it, in bf16, which only its causal network uses.
model.flash_attention = causal_model.attention = functools.partial(attention.attention, dtype=torch.float32)
# The autoencoder's class at an eighth of its width.
vae._video_vae = functools.partial(vae._video_vae, dim=8)
ROOT = Path(next(iter(lightx2v_train.__path__))).parent
PROMPTS = ["a cat", "a cat", "a dog", "a dog"]


@functools.cache
def files():
    """A folder with weights, and a cached condition and latents of each prompt."""
    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    network = model.WanModel(text_len=4, dim=24, ffn_dim=32, freq_dim=16, num_heads=2, num_layers=1)
    torch.nn.init.normal_(network.head.head.weight, std=0.1)  # zeros at first, which would hide the conditions
    network.save_pretrained(folder)
    shape = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    torch.save(vae.WanVAE_(dim=8, z_dim=16, **shape).state_dict(), folder / "Wan2.1_VAE.pth")
    embeddings = {prompt: torch.randn(4, 4096) for prompt in [*PROMPTS, "", "a fox"]}
    for prompt, embedding in embeddings.items():
        torch.save({"positive": {"prompt_embed": embedding}}, folder / f"condition-{prompt}.pt")
        torch.save(torch.randn(16, 2, 2, 2), folder / f"latents-{prompt}.pt")
    return folder


def rows(prompts):
    """A metadata file with a row per prompt."""
    file = files() / f"{'-'.join(map(str, map(hash, prompts)))}.jsonl"
    row = lambda p: {"caption": p, "condition_path": f"condition-{p}.pt", "video_latent_path": f"latents-{p}.pt"}  # noqa: E731
    file.write_text("\n".join(json.dumps(row(p)) for p in prompts))
    return str(file)


def config(name="dmd/wan2_1_t2v_1_3b_dmd", prompts=PROMPTS, amd=None, **training):
    """The host's example YAML `name` at a tiny size; nothing that concerns the method is changed."""
    settings = load_config(str(ROOT / "configs" / "train" / f"{name}.yaml"))
    roles = [settings["model"], *(part for part in settings["model"].values() if isinstance(part, dict))]
    for role in roles:
        role |= {"pretrained_model_name_or_path": str(files()), "transformer_param_dtype": "fp32"}
    settings["model"] |= {"running_dtype": "fp32", "load_text_encoder": False, "num_frame_per_chunk": 1}
    settings["distributed"] = {}
    settings["data"]["train"] = {
        "name": "latent_dataset", "data_path": [rows(prompts)], "negative_condition_path": str(files() / "condition-.pt"),
        "batch_size": len(prompts), "num_workers": 0, "pin_memory": False, "shuffle": False,
    }  # fmt: skip
    settings["inference"] |= {"method": "none", "infer_every_iters": None}
    small = {"height": 16, "width": 16, "num_frames": 5, "num_frame_per_chunk": 1, "fake_update_ratio": 1}
    dmd = settings["training"]["dmd"]
    dmd |= small | ({} if amd is None else {"amd": amd})
    dmd.pop("image_or_video_shape", None)
    if "div_loss" in dmd:
        dmd["div_loss"] |= {"teacher_inference_steps": 4, "anchor_step": 2}
    settings["training"] |= {"gradient_checkpointing": False, "max_train_iters": 100, **training}
    for role in settings["training"].values():
        if isinstance(role, dict) and "optimizer" in role:
            # Adam's first steps are signs of gradients; with a larger epsilon, rounding errors do not turn them around.
            role["optimizer"] |= {"learning_rate": 1e-3, "adam_epsilon": 1e-3}
    return settings


class ImageDmd(DmdTrainer):
    """The host's image trainer on Wan's network, with the video trainer's shapes and cached conditions."""

    default_negative_prompt = VideoDmdTrainer.default_negative_prompt
    _latent_shape, _encode_conditions = VideoDmdTrainer._latent_shape, VideoDmdTrainer._encode_conditions
    _prepare_cached_condition = VideoDmdTrainer._prepare_cached_condition


class AMDImageDmd(Adaptive, ImageDmd):
    pass


EXAMPLES = {
    "dmd": ("dmd/wan2_1_t2v_1_3b_dmd", ImageDmd, AMDImageDmd),
    "video_dmd": ("dmd/wan2_1_t2v_1_3b_dmd", VideoDmdTrainer, adapter.AMDVideoDmdTrainer),
    "video_ar_dmd": ("dmd/wan2_1_t2v_1_3b_ar_dmd", VideoArDmdTrainer, adapter.AMDVideoArDmdTrainer),
    "video_phased_dmd": (
        "phased_dmd/wan2_1_t2v_1_3b_phased_dmd", VideoPhasedDmdTrainer, adapter.AMDVideoPhasedDmdTrainer,
    ),
}  # fmt: skip


def built(trainer_class, settings, seed=0):
    """A trainer as the host's train.py builds it, set up."""
    torch.manual_seed(seed)
    network = build_model(settings)
    network.load_components()
    trainer = trainer_class(settings)
    trainer.set_model(network)
    trainer.set_data(build_data(settings, train_or_val="train"))
    return trainer


class Run:
    """One or more updates at a time, by the host's own methods for each."""

    def __init__(self, trainer, order=None):
        trainer.setup()
        self.trainer, self.order, self.step = trainer, order, 0
        self.samples, self.random = trainer._iter_train_samples(), torch.Generator().manual_seed(1).get_state()

    def train(self, steps):
        torch.set_rng_state(self.random)
        losses = []
        with contextlib.nullcontext() if self.order is None else ReorderedDraws(self.order):
            for _ in range(steps):
                losses += self.update()
                self.step += 1
        self.random = torch.get_rng_state()
        weights = [p.detach().clone() for network in self.roles() for p in network.parameters()]
        return Trace([torch.tensor(loss) for loss in losses], weights, self.random)

    def update(self):
        trainer = self.trainer
        if isinstance(trainer, VideoPhasedDmdTrainer):
            region = trainer._region_for_iteration(self.step)
            branch = trainer._teacher_branch_for_iteration(self.step, region)
            student = trainer._train_student_stage(self.samples, 1, region, branch)
            return [student[0], trainer._train_fake_stage(self.samples, 1, region)[0]]
        if isinstance(trainer, VideoDmdTrainer):
            return [trainer._train_one_stage(self.samples, stage, 1)["loss"] for stage in ("student", "fake")]
        return [self.image_turn("student"), self.image_turn("fake")]

    def image_turn(self, stage):
        """What the host's `DmdTrainer.train` does between two steps of an optimizer."""
        trainer, sample = self.trainer, next(self.samples)
        optimizer = trainer.optimizer if stage == "student" else trainer.fake_optimizer
        conditions = trainer._encode_conditions(sample)
        loss = trainer.forward_loss(trainer._latent_shape(sample), conditions, stage, current_iter=self.step)[stage]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if stage == "student":
            trainer._after_student_optimizer_step("main")
        return loss.item()

    def roles(self):
        """Every network that is trained."""
        names = ("", "fake_", "student_2_", "fake_2_", "fake_real_", "fake_real_high_", "fake_real_low_")
        networks = (getattr(self.trainer, f"{name}model", None) for name in names)
        return [network.denoiser_module() for network in networks if network is not None]

    def state(self):
        with tempfile.TemporaryDirectory() as folder:
            self.trainer.output_train_dir = folder
            self.trainer.save_checkpoint(self.step, 3)
            kept = Path(folder) / f"checkpoint-{self.step:09d}"
            saved = {str(file.relative_to(kept)): file.read_bytes() for file in kept.rglob("*") if file.is_file()}
        return saved, self.step, self.random

    def restore(self, state):
        saved, self.step, self.random = state
        with tempfile.TemporaryDirectory() as folder:
            for name, content in saved.items():
                file = Path(folder) / f"checkpoint-{self.step:09d}" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            self.trainer._load_resume_state(str(Path(folder) / f"checkpoint-{self.step:09d}"))
