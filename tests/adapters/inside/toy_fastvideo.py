"""Roles small enough for FastVideo's trainer on a CPU: a `ModelBase` around a few linear layers, counting its calls; and the
YAML of a run with them."""

from types import SimpleNamespace

import torch
from fastvideo.dataset.dataloader.schema import pyarrow_schema_t2v
from fastvideo.models.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from fastvideo.train.callbacks.callback import Callback
from fastvideo.train.models.base import CausalModelBase, ModelBase
from fastvideo.train.utils.dataloader import build_parquet_t2v_train_dataloader
from fastvideo.training.trackers import BaseTracker

SHAPE = (2, 3, 4, 4)  # frames, channels, height, width
PROMPTS = ["a cat", "a cat", "a dog", "a dog"]
STOCK = "fastvideo.train.methods.distribution_matching.dmd2.DMD2Method"
OURS = "amd_plugin.adapters.fastvideo.AMDMethod"
STATE = {"amd": {"_target_": "amd_plugin.adapters.fastvideo.AMDStateCallback"}}


def role(seed, name, trainable=True):
    return {"_target_": "toy_fastvideo.Toy", "seed": seed, "name": name, "trainable": trainable}


def settings(
    folder, method=OURS, amd=None, callbacks=None, steps=10, save=0, resume="", processes=1, batch=4, data="none", **options
):
    """What a user writes in YAML."""
    return {
        "models": {"student": role(1, "student"), "teacher": role(2, "teacher", False), "critic": role(3, "critic")},
        "method": {
            "_target_": method, "rollout_mode": "simulate", "generator_update_interval": 2, "real_score_guidance_scale": 4.5,
            "dmd_denoising_steps": [1000, 750, 500, 250], "fake_score_learning_rate": 0.01, "fake_score_betas": [0.0, 0.999],
            "fake_score_lr_scheduler": "constant", **({} if amd is None else {"amd": amd}), **options,
        },
        "training": {
            "distributed": {"num_gpus": processes, "sp_size": 1, "tp_size": 1},
            "data": {"data_path": str(data), "train_batch_size": batch, "seed": 1000, "dataloader_num_workers": 0},
            "optimizer": {"learning_rate": 0.01, "betas": [0.0, 0.999], "lr_scheduler": "constant", "lr_warmup_steps": 0},
            "loop": {"max_train_steps": steps, "gradient_accumulation_steps": 1},
            "checkpoint": {
                "output_dir": str(folder), "training_state_checkpointing_steps": save, "resume_from_checkpoint": resume,
            },
        },
        "callbacks": {"probe": {"_target_": "toy_fastvideo.Probe"}, "grad_clip": {"max_grad_norm": 1.0}, **(callbacks or {})},
    }  # fmt: skip


class Net(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.mix, self.text, self.time = torch.nn.Linear(48, 48), torch.nn.Linear(5, 48), torch.nn.Linear(1, 48)

    def forward(self, x, t, text):
        frames = x.flatten(2)
        return (self.mix(frames) + self.text(text)[:, None] + self.time(t.float().view(-1, 1, 1) / 1000)).tanh().view_as(x)


class Toy(ModelBase):
    calls: list = []  # noqa: RUF012  # of all roles, for counting

    def __init__(self, *, seed, trainable=True, training_config=None, name="", order=None):
        super().__init__(trainable=trainable)
        self.transformer, self.name = Net(seed).requires_grad_(trainable), name
        self.noise_scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        draws = torch.Generator().manual_seed(0)
        texts = torch.randn(2, 5, generator=draws).repeat_interleave(2, 0)
        rows = range(len(PROMPTS)) if order is None else order
        self.dataloader = [{"text": texts[list(rows)], "info_list": [{"prompt": PROMPTS[row]} for row in rows]}]

    @torch.no_grad()  # as in all of FastVideo's models
    def decode_latents(self, latents):
        return latents.permute(0, 2, 1, 3, 4).sigmoid()

    def prepare_batch(self, raw_batch, *, generator, latents_source="data"):
        text = raw_batch["text"]
        return SimpleNamespace(
            latents=torch.zeros(len(text), *SHAPE), timesteps=torch.zeros(1), attn_metadata=None, attn_metadata_vsa=None,
            conditional_dict={"encoder_hidden_states": text}, infos=raw_batch["info_list"],
            unconditional_dict={"encoder_hidden_states": torch.zeros_like(text)}, dmd_latent_vis_dict={},
        )  # fmt: skip

    def add_noise(self, clean_latents, noise, timestep):
        flat = self.noise_scheduler.add_noise(clean_latents.flatten(0, 1), noise.flatten(0, 1), timestep)
        return flat.unflatten(0, clean_latents.shape[:2])

    def predict_noise(self, noisy_latents, timestep, batch, *, conditional, cfg_uncond=None, attn_kind="dense"):
        Toy.calls.append((self.name, len(noisy_latents), torch.is_grad_enabled()))
        text = (batch.conditional_dict if conditional else batch.unconditional_dict)["encoder_hidden_states"]
        return self.transformer(noisy_latents, timestep, text)

    def backward(self, loss, ctx, *, grad_accum_rounds):
        (loss / grad_accum_rounds).backward()


class ParquetToy(Toy):
    """With FastVideo's own loader, of rows that `tiny_fastvideo.write_data` wrote."""

    def init_preprocessors(self, training_config):
        self.dataloader = build_parquet_t2v_train_dataloader(
            training_config.data, text_len=3, parquet_schema=pyarrow_schema_t2v
        )  # fmt: skip

    def prepare_batch(self, raw_batch, **options):
        return super().prepare_batch({**raw_batch, "text": raw_batch["text_embedding"].float().mean(1)}, **options)


class Probe(Callback):
    """Keeps the method, the callbacks beside it, and what the gradients were before each step."""

    method = callbacks = None
    gradients: list = []  # noqa: RUF012

    def on_train_start(self, method, iteration=0):
        Probe.method, Probe.callbacks, Probe.gradients = method, self._callback_dict, []

    def on_before_optimizer_step(self, method, iteration=0):
        roles = (method.student, method.critic)
        Probe.gradients.append([p.grad.clone() for r in roles for p in r.transformer.parameters() if p.grad is not None])


class Log(BaseTracker):
    """A tracker of the host's that keeps its lines."""

    lines: list = []  # noqa: RUF012

    def log(self, metrics, step):
        Log.lines.append({"step": step, **metrics})


class CausalToy(Toy, CausalModelBase):
    """For self-forcing: frames in chunks, each seen by itself."""

    def clear_caches(self, *, cache_tag="pos"):
        self.cleared = cache_tag

    def predict_noise_streaming(
        self, noisy_latents, timestep, batch, *, conditional, cache_tag="pos", store_kv=False, cur_start_frame=0,
        cfg_uncond=None, attn_kind="dense",
    ):  # fmt: skip
        flow = self.predict_noise(noisy_latents, timestep.flatten()[:1], batch, conditional=conditional)
        return None if store_kv else flow
