"""Whole untrained pipelines of real diffusers classes, at sizes that a CPU trains in minutes.

Text encoders keep their initial weights: they only have to map a few dozen prompts to different embeddings. Autoencoders have
weights set by hand, which make them an exact map between grey pictures and one latent channel. So only the network is trained,
and only its errors are measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from amd_plugin.randomness import generator

TEXT_WIDTH, TEXT_LENGTH = 32, 16


def tiny_sdxl(
    vocabulary: Sequence[str],
    *,
    size: int = 8,
    channels: int = 1,
    width: int = 32,
    depth: int = 1,
    heads: int = 2,
    seed: int = 0,
) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL for pictures of `size` x `size` pixels, a multiple of 8, with one latent per pixel and channel.

    Coloured pictures are larger. Their UNet has one more level, which only carries the pixels in and out; and their schedule is
    the noisier one of DDPM with v prediction, which begins at pure noise: white backgrounds cannot leak into the first step.

    Args:
        vocabulary: words of the prompts.
        channels: 1 for grey pictures, 3 for coloured ones.
        width: channels of the UNet at full resolution, a multiple of 8; twice as many at the lowest.
        depth: transformer blocks in each attention layer.
        heads: attention heads at full resolution.
        seed: seed of all random weights.
    """
    with _seeded(seed, "tiny sdxl"):
        tokenizer = clip_tokenizer(vocabulary)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, projection_dim=TEXT_WIDTH,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        carry = channels > 1  # a level without residual blocks on the way down
        unet: Any = UNet2DConditionModel(
            sample_size=size, in_channels=channels, out_channels=channels,
            block_out_channels=(*(width,) * carry, width, 2 * width), layers_per_block=(0, 1, 1) if carry else 1,
            down_block_types=(*("DownBlock2D",) * carry, "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", *("UpBlock2D",) * carry),
            transformer_layers_per_block=(*(1,) * carry, 1, depth), attention_head_dim=(*(heads,) * carry, heads, 2 * heads),
            use_linear_projection=True,
            cross_attention_dim=2 * TEXT_WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH, norm_num_groups=8,
        )  # fmt: skip
        encoders: dict[str, Any] = {"text_encoder": CLIPTextModel(text), "text_encoder_2": CLIPTextModelWithProjection(text)}
        encoders = {name: _frozen(_spread(encoder)) for name, encoder in encoders.items()}
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if carry:
        betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    scheduler = EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1)
    return StableDiffusionXLPipeline(
        vae=_frozen(_image_autoencoder(size, channels)), unet=unet.eval(), scheduler=scheduler, tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(vocabulary), **encoders,
    )  # fmt: skip


def tiny_wan(
    vocabulary: Sequence[str], *, width: int = 48, depth: int = 3, heads: int = 2, patch_size: int = 4, seed: int = 0
) -> WanPipeline:
    """A Wan for grey videos whose edges are multiples of 16 pixels, with one latent per pixel and frame.

    Args:
        vocabulary: words of the prompts.
        width: channels of the transformer, over all `heads`; an even number of at least 12 per head.
        depth: number of blocks.
        heads: attention heads.
        patch_size: pixels per token along an edge.
        seed: seed of all random weights.
    """
    with _seeded(seed, "tiny wan"):
        tokenizer = word_tokenizer(vocabulary)
        text = UMT5Config(
            vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=16, d_ff=2 * TEXT_WIDTH, num_layers=2, num_heads=2,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        transformer: Any = WanTransformer3DModel(
            patch_size=(1, patch_size, patch_size), num_attention_heads=heads, attention_head_dim=width // heads,
            in_channels=1, out_channels=1, text_dim=TEXT_WIDTH, freq_dim=64, ffn_dim=3 * width, num_layers=depth,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
        )  # fmt: skip
        encoder = UMT5EncoderModel(text)
        # The transformer's small initial weights attenuate text states of unit size; larger states train in fewer steps.
        encoder.encoder.final_layer_norm.weight.data.fill_(4.0)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    return WanPipeline(
        vae=_frozen(_video_autoencoder()), transformer=transformer.eval(), scheduler=scheduler, tokenizer=tokenizer,
        text_encoder=_frozen(encoder),
    )  # fmt: skip


def _image_autoencoder(size: int, channels: int) -> Any:
    # The background of coloured pictures is white, 1; without the mean it would be most of what there is to predict.
    white = {"latents_mean": (0.5,) * channels, "latents_std": (1.0,) * channels} if channels > 1 else {}
    width = 2 * channels + 2
    vae: Any = AutoencoderKL(
        latent_channels=channels, block_out_channels=(width,), layers_per_block=1, norm_num_groups=1, sample_size=size,
        scaling_factor=1.0, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False, **white,
    )  # fmt: skip
    pixels = torch.full((1, 3), 1 / 3) if channels == 1 else torch.eye(3)
    for part, inputs in ((vae.encoder, pixels), (vae.decoder, torch.eye(channels))):
        _pass_through(part, inputs, part.conv_norm_out, constant=512.0)
        # Over a group of [x, -x, K, -K] the norm divides by K sqrt(2 / width), as x is negligible beside K.
        part.conv_norm_out.weight.data[:-2] = 512.0 * (2 / width) ** 0.5
    return vae


def _video_autoencoder() -> Any:
    vae: Any = AutoencoderKLWan(
        base_dim=4, z_dim=1, dim_mult=[1], num_res_blocks=1, attn_scales=[], temperal_downsample=[], latents_mean=[0.0],
        latents_std=[1.0], scale_factor_temporal=1, scale_factor_spatial=1,
    )  # fmt: skip
    for part, pixels in ((vae.encoder, torch.full((1, 3), 1 / 3)), (vae.decoder, torch.ones(1, 1))):
        _pass_through(part, pixels, part.norm_out, constant=4096.0)
        # Likewise per position, where the norm over channels divides by K sqrt 2 and multiplies by 2.
        part.norm_out.gamma.data[:2] = 4096.0 / 2**0.5
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.zeros_(conv.bias)
        conv.weight.data = torch.eye(len(conv.weight)).reshape(conv.weight.shape)
    return vae


@torch.no_grad()
def _pass_through(part: Any, inputs: torch.Tensor, norm: nn.Module, constant: float) -> None:
    """Makes an encoder or decoder linear: its channels are [x, -x, K, -K], and silu(x) - silu(-x) = x undoes its activation.

    Args:
        part: encoder or decoder.
        inputs: weights of the input channels in each of the channels x, [x, inputs].
        norm: norm layer before the last activation; nearly linear, as K is large.
        constant: K.
    """
    for module in part.modules():
        # A residual block ends in its second convolution, an attention block in its projection.
        for last in (getattr(module, name, None) for name in ("conv2", "proj")):
            for parameter in last.parameters() if isinstance(last, nn.Module) else ():
                nn.init.zeros_(parameter)
    enter, leave, count = part.conv_in, part.conv_out, len(inputs)
    for conv in (enter, leave):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    # The last tap of a convolution that is causal in time is the present frame.
    centre = (-1, 1, 1) if enter.weight.dim() == 5 else (1, 1)
    for index, weights in enumerate(inputs):
        enter.weight[(index, slice(None), *centre)], enter.weight[(count + index, slice(None), *centre)] = weights, -weights
    enter.bias[2 * count], enter.bias[2 * count + 1] = constant, -constant
    if encodes := len(leave.bias) == 2 * count:
        leave.bias[count:] = -30.0  # the encoder's log variance
    for output in range(count if encodes else len(leave.bias)):
        # A decoder of one channel shows it as grey.
        index = output % count
        leave.weight[(output, index, *centre)], leave.weight[(output, count + index, *centre)] = 1.0, -1.0
    for parameter in norm.parameters():
        nn.init.zeros_(parameter)


def _spread(encoder: nn.Module) -> nn.Module:
    """Larger random weights than training would start from, so that the last token's state depends on all words."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
        elif isinstance(module, nn.Embedding):
            module.weight.data *= 0.5 / module.weight.std()
    return encoder


def clip_tokenizer(vocabulary: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer of bytes, with merges that build each word of `vocabulary` from the left."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in vocabulary:
        spelt = [*word[:-1], f"{word[-1]}</w>"]
        merges += list(zip(itertools.accumulate(spelt[:-1]), spelt[1:], strict=True))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    unique: list[Any] = list(dict.fromkeys(merges))  # annotated as text, though pairs are taken as well
    return CLIPTokenizer(vocab=vocab, merges=unique, model_max_length=TEXT_LENGTH)


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of `vocabulary`; sentences end as for T5."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocab = {token: index for index, token in enumerate(dict.fromkeys((*special.values(), *vocabulary)))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))  # noqa: S106 (a token of text)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocab["</s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


def _frozen(module: Any) -> Any:
    return module.requires_grad_(False).eval()


@contextmanager
def _seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seeds the global generator, which constructors draw from, within the context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, purpose).initial_seed())
        yield
