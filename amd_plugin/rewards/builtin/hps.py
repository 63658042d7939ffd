"""Human preference score v2 (2306.09341): its published open_clip checkpoint, read into a CLIP model of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from amd_plugin.models.dtypes import DTYPES
from amd_plugin.rewards.builtin.clip import HINT, Clip
from amd_plugin.rewards.builtin.frames import Count, Dtype, FrameReward
from amd_plugin.rewards.builtin.weights import check_words, checkpoint_file, fill, read_weights, reading
from amd_plugin.rewards.protocol import LOGITS

NAMES = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt")

# open_clip's names and transformers' for the same tensors, applied in this order.
RENAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


class HPSv2Reward(FrameReward):
    """Cosine of image and text embeddings, mostly 0.2 to 0.35; for a video, the mean over some of its frames.

    Args:
        path: file of the checkpoint, or a folder or hub id that has it.
        processor: folder or hub id of the CLIP model it was trained from, for its sizes, tokenizer and image processor.
        revision: revision of the checkpoint on the hub.
        dtype: precision of its weights.
        frames: largest number of frames scored per video, evenly spread.
        batch_size: number of images scored at a time.

    Raises:
        InputError: if it cannot be loaded, or its tokenizer does not tell words apart.
    """

    version = "2.1"
    unit = LOGITS / 100  # its logits are 100 times the cosines

    def __init__(
        self,
        path: str = "xswu/HPSv2",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 32,
    ):
        file = checkpoint_file("hpsv2", path, NAMES, revision)
        hint = "Check the name and the network"
        with reading("hpsv2", processor, "the config, tokenizer and image processor of a CLIP model", hint):
            from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel  # see `read_clip`

            config: Any = CLIPConfig.from_pretrained(processor)
            # The checkpoint was trained with exact GELU; transformers' default is OpenAI's approximation.
            config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"
            model: Any = CLIPModel(config)
            tokenizer = AutoTokenizer.from_pretrained(processor)
            images = CLIPImageProcessor.from_pretrained(processor)
        check_words("hpsv2", tokenizer, processor, HINT)
        fill("hpsv2", model, from_open_clip(read_weights("hpsv2", file)), str(file))
        # Its authors scale the longer side and pad with black, unlike CLIP's own processor.
        self._clip = Clip(model.to(DTYPES[dtype]), tokenizer, images.image_mean, images.image_std, fit="pad")
        super().__init__(self._clip, frames, batch_size)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._clip.similarity(images, prompts)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state dict of a CLIP with a vision transformer, under the names that transformers' `CLIPModel` has."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "attn_mask":  # a constant
            continue
        if name in ("visual.proj", "text_projection"):  # matrices applied from the right there, layers here
            converted[f"{'visual' if name == 'visual.proj' else 'text'}_projection.weight"] = tensor.T.contiguous()
            continue
        renamed = name
        for pattern, replacement in RENAMES:
            renamed = re.sub(pattern, replacement, renamed)
        fused = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", renamed)
        if fused is None:
            converted[renamed] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            converted[f"{fused[1]}.self_attn.{part}_proj.{fused[2]}"] = piece.contiguous()
    return converted
