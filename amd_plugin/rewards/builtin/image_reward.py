"""ImageReward (2304.05977): its released checkpoint in transformers' BLIP classes, score for score the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.disk import at_home
from amd_plugin.errors import InputError
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.rewards.builtin.frames import Count, Dtype, FrameReward
from amd_plugin.rewards.builtin.weights import check_words, checkpoint_file, fill, read_weights, reading, score_head
from amd_plugin.rewards.protocol import LOGITS, resize

NAMES = ("ImageReward.safetensors", "ImageReward.pt")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
TEXT_LENGTH = 35
HEAD_WIDTH = 64  # width of an attention head in every vision transformer BLIP uses

VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
# Weights of BLIP's pre-training that no score depends on.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


class ImageReward(FrameReward):
    """Scores of about -2 to 2, standard normal over its training data; for a video, the mean over some of its frames.

    Args:
        path: file of the checkpoint, or a folder or hub id that has it.
        med_config: file with the sizes of the text encoder; by default ``med_config.json`` beside the weights.
        tokenizer: folder or hub id of BERT's tokenizer.
        revision: revision of the checkpoint on the hub; a commit hash pins it.
        dtype: precision of the two encoders; the last layers are computed in fp32.
        frames: largest number of frames scored per video, evenly spread.
        batch_size: number of images scored at a time.

    Raises:
        InputError: if it cannot be loaded, or its tokenizer does not tell words apart.
    """

    version = "1.0"
    unit = LOGITS

    def __init__(
        self,
        path: str = "THUDM/ImageReward",
        med_config: str | None = None,
        tokenizer: str = "bert-base-uncased",
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 16,
    ):
        file = checkpoint_file("image_reward", path, NAMES, revision)
        if med_config is None:
            beside = file.with_name("med_config.json")
            on_hub = not at_home(path).exists()
            sizes = checkpoint_file("image_reward", path if on_hub else str(beside), ("med_config.json",), revision)
        else:
            sizes = checkpoint_file("image_reward", med_config, ("med_config.json",))
        self._blip = BlipScore(read_weights("image_reward", file), sizes, str(file))
        self._blip.encoders.to(DTYPES[dtype])
        self.tokenizer = _tokenizer(tokenizer, self._blip.vocabulary)
        super().__init__(self._blip, frames, batch_size)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = (resize(images, self._blip.edge, "crop") - mean) / std
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        ).to(images.device)
        scores: Tensor = self._blip(pixels, tokens.input_ids, tokens.attention_mask)
        return scores


class BlipScore(nn.Module):
    """Vision transformer, text encoder that attends to its output, and the layers that map the first token to a score.

    Args:
        state: tensors of the released checkpoint.
        sizes: file with the text encoder's configuration; the vision transformer's is inferred from its tensors.
        source: origin of `state`, for error messages.

    Attributes:
        edge: side of the images it takes, in pixels.
        vocabulary: number of tokens in its vocabulary.

    Raises:
        InputError: if the tensors are not those of an ImageReward of these sizes.
    """

    def __init__(self, state: Mapping[str, Tensor], sizes: Path, source: str):
        super().__init__()
        from transformers.models.blip.modeling_blip import BlipVisionModel  # see `read_clip`
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        state = {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)}
        own = {prefix: _under(state, prefix) for prefix in ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.")}
        unknown = [name for name in state if not name.startswith(tuple(own))]
        empty = [prefix for prefix, tensors in own.items() if not tensors]
        if unknown or empty:
            message = f"{source} is no ImageReward checkpoint: "
            message += f"nothing is called {empty[0]}*" if empty else f"{len(unknown)} unexpected, the first is {unknown[0]}"
            raise InputError(f"reward image_reward: {message}. Fetch it again")
        vision, text, head = own.values()
        vision_config = _vision_config(vision, source)
        text_config = _text_config(sizes, vision_config.hidden_size)
        self.edge: int = vision_config.image_size
        self.vocabulary: int = text_config.vocab_size
        self.encoders = nn.ModuleList([BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)])
        self.head = score_head(text_config.hidden_size)
        parts = (("vision", self.encoders[0], _renamed(vision)), ("text", self.encoders[1], text), ("head", self.head, head))
        for name, module, tensors in parts:
            fill("image_reward", module, tensors, f"{source} ({name})")

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores [N] fp32 of normalised pixels [N, 3, edge, edge] for tokens and mask [N, L]."""
        vision, text = self.encoders[0], self.encoders[1]
        image_states = vision(pixel_values=pixels.to(next(vision.parameters()).dtype)).last_hidden_state
        everywhere = torch.ones(image_states.shape[:-1], dtype=torch.long, device=image_states.device)
        context = {"encoder_hidden_states": image_states, "encoder_attention_mask": everywhere}
        # Its weights are a decoder's, but every token attends to every other.
        text_states = text(input_ids=tokens, attention_mask=mask, **context, is_decoder=False).last_hidden_state
        raw: Tensor = self.head(text_states[:, 0].float())[:, 0]
        return (raw - SCORE_MEAN) / SCORE_STD


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}


def _renamed(vision: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision transformer's tensors under transformers' names."""
    renamed = {}
    for name, tensor in vision.items():
        new = f"post_layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        for old, theirs in VISION.items():
            new = new.replace(old, theirs)
        renamed[new] = tensor
    return renamed


def _vision_config(vision: Mapping[str, Tensor], source: str) -> Any:
    from transformers.models.blip.configuration_blip import BlipVisionConfig

    try:
        width, patch = vision["cls_token"].shape[-1], vision["patch_embed.proj.weight"].shape[-1]
        side = math.isqrt(vision["pos_embed"].shape[1] - 1)
        feed_forward = len(vision["blocks.0.mlp.fc1.weight"])
    except (KeyError, IndexError, ValueError) as error:
        message = f"the vision transformer in {source} is incomplete: {type(error).__name__}: {error}"
        raise InputError(f"reward image_reward: {message}. Fetch it again") from error
    return BlipVisionConfig(
        hidden_size=width, intermediate_size=feed_forward, num_attention_heads=max(1, width // HEAD_WIDTH), patch_size=patch,
        num_hidden_layers=len({name.split(".")[1] for name in vision if name.startswith("blocks.")}), image_size=side * patch,
        layer_norm_eps=1e-6, hidden_act="gelu",
    )  # fmt: skip


def _text_config(file: Path, vision_width: int) -> Any:
    from transformers.models.blip.configuration_blip import BlipTextConfig

    with reading("image_reward", str(file), "the text encoder's sizes", "Name the released med_config.json as `med_config`"):
        given: Any = json.loads(file.read_text(encoding="utf-8"))
        same = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
            "max_position_embeddings", "layer_norm_eps", "pad_token_id",
        )  # fmt: skip
        sizes = {name: given[name] for name in same}
    return BlipTextConfig(**sizes, encoder_hidden_size=vision_width, is_decoder=True)


def _tokenizer(path: str, vocabulary: int) -> Any:
    """BERT's tokenizer, with the two tokens BLIP adds."""
    hint = "Name a folder with a complete BERT tokenizer as `tokenizer`"
    with reading("image_reward", path, "a BERT tokenizer", hint):
        from transformers import BertTokenizer

        tokenizer = BertTokenizer.from_pretrained(path)
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    check_words("image_reward", tokenizer, path, hint)
    if len(tokenizer) > vocabulary:
        message = f"the tokenizer of {path} has {len(tokenizer)} tokens, the network has embeddings for {vocabulary}"
        raise InputError(f"reward image_reward: {message}. {hint}")
    return tokenizer
