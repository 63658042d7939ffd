"""Tiny pipelines of every family on disk, unlike each other and unlike the embedded tasks' where that matters."""

import json
import textwrap
from functools import cache

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from amd_plugin.models.embedded.tiny import clip_tokenizer, tiny_sdxl, tiny_wan, word_tokenizer
from tests.helpers.commands import Server

WORDS = ["a", "red", "fox", "blue", "boat", "tall", "house"]
PROMPTS = ["a red fox", "a blue boat", "a tall house", "a red house", "a blue fox"]


def _autoencoder(channels):
    torch.manual_seed(1)
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip


def sdxl(v_prediction=False):
    """8 x 8 latents of 16 x 16 pixels, with 4 channels."""
    pipeline = tiny_sdxl(WORDS, size=8, width=16, seed=3)
    torch.manual_seed(2)
    unet = type(pipeline.unet).from_config({**pipeline.unet.config, "in_channels": 4, "out_channels": 4})
    pipeline.register_modules(unet=unet.eval(), vae=_autoencoder(4))
    if v_prediction:
        pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    return pipeline


def wan():
    """5 frames of 16 x 16."""
    return tiny_wan(WORDS, width=24, depth=1, patch_size=8, seed=3)


def wan22():
    """Like Wan2.2-TI2V-5B, every token gets a timestep of its own."""
    pipeline = tiny_wan(WORDS, width=24, depth=1, patch_size=2, seed=3)
    pipeline.register_to_config(expand_timesteps=True)
    return pipeline


def dit(flow=False):
    """A thousand classes, 4 x 4 latents of 8 x 8 pixels; DiT has learnt its variance too, SiT has not."""
    torch.manual_seed(4)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4 if flow else 8, num_layers=2, sample_size=4,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=1,
    ).eval()  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler()
    return DiTPipeline(network, _autoencoder(4), scheduler)


def sd3():
    """8 x 8 latents of 16 x 16 pixels."""
    tokenizer = clip_tokenizer(WORDS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    words = word_tokenizer(WORDS)
    t5 = T5Config(vocab_size=len(words), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    torch.manual_seed(5)
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=16,
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_autoencoder(4),
        text_encoder=CLIPTextModelWithProjection(text).eval(), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text).eval(), tokenizer_2=clip_tokenizer(WORDS),
        text_encoder_3=T5EncoderModel(t5).eval(), tokenizer_3=words,
    )  # fmt: skip


BUILD = {
    "sdxl": sdxl, "sdxl_v": lambda: sdxl(v_prediction=True), "wan": wan, "wan22": wan22, "dit": dit, "sit": lambda: dit(flow=True), "sd3": sd3,
}  # fmt: skip


@cache
def _elsewhere():
    return Server("sys.modules['amd_plugin'] = None\nimport torch, peft\nfrom diffusers import DiffusionPipeline")


def elsewhere(code, cwd):
    """What `code` prints as JSON on its last line, in a process of its own that cannot import amd_plugin."""
    done = _elsewhere().run(textwrap.dedent(code), cwd=cwd)
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])
