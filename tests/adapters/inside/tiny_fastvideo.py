"""FastVideo's own Wan at a tiny size on a CPU: transformer, autoencoder, text encoder, parquet data, its FSDP on gloo.

The host asks for a GPU in three places without need; `on_cpu` answers there, and nothing else of it is changed.
"""

import inspect
import json
import os
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import yaml
from torch.distributed.device_mesh import init_device_mesh

PROMPTS = ["a red fox", "a blue boat"]
TINY = {
    "num_latent_t": 2, "num_height": 32, "num_width": 32, "num_frames": 5, "dataloader_num_workers": 0, "train_batch_size": 4,
}  # fmt: skip


def on_cpu():
    """Names the CPU where the host takes for granted that there is a GPU."""
    from fastvideo.distributed import parallel_state
    from fastvideo.platforms.cpu import CpuPlatform
    from fastvideo.platforms.mps import MpsPlatform

    # Attention by torch, as on a Mac; there is no entry for a CPU.
    CpuPlatform.get_attn_backend_cls = vars(MpsPlatform)["get_attn_backend_cls"]
    answers = {
        parallel_state.get_local_torch_device: lambda: torch.device("cpu"),
        init_device_mesh: lambda kind, **shape: init_device_mesh("cpu", **shape),
    }
    for name, module in list(sys.modules.items()):
        for function, answer in answers.items():
            if name.startswith("fastvideo") and vars(module).get(function.__name__) is function:
                setattr(module, function.__name__, answer)
    autocast = torch.autocast
    torch.autocast = lambda device_type, **options: autocast("cpu", **options)
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = torch.get_rng_state, lambda state: None


def write_model(folder):
    """A pipeline of diffusers' Wan classes, from which the host loads its own."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from fastvideo.models.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    from amd_plugin.models.embedded.tiny import tiny_wan

    pipeline = tiny_wan(" ".join(PROMPTS).split(), seed=3)
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, freq_dim=64,
        text_dim=pipeline.text_encoder.config.d_model, ffn_dim=64, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    pipeline.register_modules(transformer=transformer, vae=vae)
    pipeline.save_pretrained(folder)
    # The host's scheduler is an older one than diffusers', and knows fewer settings.
    parameters = inspect.signature(UniPCMultistepScheduler).parameters
    path = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in settings.items() if key in parameters or key[0] == "_"}))
    return pipeline.text_encoder.config.d_model


def write_data(folder, width, prompts=PROMPTS, count=16):
    """`count` rows of latents and text embeddings, as the host's preprocessing leaves them, of `prompts` in turn."""
    from fastvideo.dataset.dataloader.schema import pyarrow_schema_t2v

    draws, rows = np.random.default_rng(0), []
    for index in range(count):
        prompt = prompts[index % len(prompts)]
        row = {
            "id": str(index), "file_name": f"{index}.mp4", "caption": prompt, "media_type": "video", "width": 32, "height": 32,
            "num_frames": 5, "duration_sec": 1.0, "fps": 16.0,
        }  # fmt: skip
        text = np.random.default_rng(len(prompt)).standard_normal((3, width), dtype=np.float32)
        for name, array in (("vae_latent", draws.standard_normal((4, 2, 4, 4), dtype=np.float32)), ("text_embedding", text)):
            row |= {f"{name}_bytes": array.tobytes(), f"{name}_shape": list(array.shape), f"{name}_dtype": "float32"}
        rows.append(row)
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow_schema_t2v), folder / "data.parquet")
    validation = [{"caption": prompt, "num_inference_steps": 4} for prompt in prompts[:1]]
    (folder / "validation.json").write_text(json.dumps({"data": validation}))


def example():
    """The YAML with which FastVideo distils Wan2.1-1.3B: that of its repository if ``FASTVIDEO_EXAMPLE`` names it, or its like."""
    if "FASTVIDEO_EXAMPLE" in os.environ:
        with open(os.environ["FASTVIDEO_EXAMPLE"]) as file:
            return yaml.safe_load(file)
    wan = {"_target_": "fastvideo.train.models.wan.WanModel", "init_from": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}
    frozen = {"disable_custom_init_weights": True}
    return {
        "models": {
            "student": {**wan, "trainable": True},
            "teacher": {**wan, **frozen, "trainable": False},
            "critic": {**wan, **frozen, "trainable": True},
        },
        "method": {
            "_target_": "fastvideo.train.methods.distribution_matching.dmd2.DMD2Method", "rollout_mode": "simulate",
            "generator_update_interval": 5, "real_score_guidance_scale": 4.5, "dmd_denoising_steps": [1000, 750, 500, 250],
            "fake_score_learning_rate": 8e-6, "fake_score_betas": [0.0, 0.999], "fake_score_lr_scheduler": "constant",
        },
        "training": {
            "distributed": {"num_gpus": 4, "sp_size": 1, "tp_size": 1, "hsdp_replicate_dim": 1, "hsdp_shard_dim": 4},
            "data": {"data_path": "data", "train_batch_size": 1, "training_cfg_rate": 0.0, "seed": 1000},
            "optimizer": {
                "learning_rate": 2e-6, "betas": [0.0, 0.999], "weight_decay": 0.01, "lr_scheduler": "constant",
                "lr_warmup_steps": 0,
            },
            "loop": {"max_train_steps": 4000, "gradient_accumulation_steps": 1},
            "checkpoint": {"output_dir": "outputs", "training_state_checkpointing_steps": 20, "checkpoints_total_limit": 3},
            "tracker": {"project_name": "distillation_wan", "run_name": "wan2.1_dmd2_4steps"},
            "model": {"enable_gradient_checkpointing_type": "full", "enable_torch_compile": True},
        },
        "callbacks": {
            "grad_clip": {"max_grad_norm": 1.0},
            "validation": {
                "pipeline_target": "fastvideo.pipelines.basic.wan.wan_dmd_pipeline.WanDMDPipeline", "dataset_file": "",
                "every_steps": 50, "sampling_steps": [4], "sampling_timesteps": [1000, 750, 500, 250], "guidance_scale": 6.0,
            },
            "ema": {"_target_": "fastvideo.train.callbacks.ema.EMACallback", "decay": 0.98, "start_iter": 0},
        },
        "pipeline": {"flow_shift": 8},
    }  # fmt: skip


def shrunk(run, model, data, output, steps, every):
    """The same run on one CPU, with a tiny model and data of `steps` steps, saving and validating `every` so many."""
    for role in run["models"].values():
        role["init_from"] = str(model)
    training, callbacks = run["training"], run["callbacks"]
    training["distributed"] |= {"num_gpus": 1, "hsdp_replicate_dim": 1, "hsdp_shard_dim": 1}
    training["data"] |= {**TINY, "data_path": str(data)}
    training["loop"]["max_train_steps"] = steps
    training["checkpoint"] |= {"output_dir": str(output), "training_state_checkpointing_steps": every}
    training["model"]["enable_torch_compile"] = False
    callbacks["validation"] |= {"dataset_file": str(data / "validation.json"), "every_steps": every}
    callbacks["probe"] = {"_target_": "toy_fastvideo.Probe"}
    return run
