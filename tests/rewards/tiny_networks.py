"""Checkpoints of the rewards' networks at tiny sizes, laid out as their publishers did."""

import json
from itertools import pairwise

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from amd_plugin.models.embedded.tiny import clip_tokenizer

EDGE = 32
WORDS = ["a", "red", "apple", "two", "tall", "blue", "house", "houses"]
VISION, TEXT = 64, 48


def write_clip(folder):
    tokenizer = clip_tokenizer(WORDS[1:])
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 16, "hidden_act": "gelu", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": EDGE,
              "patch_size": 8, "hidden_act": "gelu"}  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": EDGE, "width": EDGE}
    CLIPImageProcessor(size={"shortest_edge": EDGE}, crop_size=crop).save_pretrained(folder)
    return folder


def open_clip_state(model):
    """A `CLIPModel`'s tensors under the names that open_clip gives them."""
    ours, theirs = model.state_dict(), {"logit_scale": model.logit_scale.data}
    for tower, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for i in range(2):
            one, other = f"{tower}.encoder.layers.{i}", f"{prefix}.resblocks.{i}"
            for kind in ("weight", "bias"):
                fused = [ours[f"{one}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                theirs[f"{other}.attn.in_proj_{kind}"] = torch.cat(fused)
                theirs[f"{other}.attn.out_proj.{kind}"] = ours[f"{one}.self_attn.out_proj.{kind}"]
                theirs[f"{other}.ln_1.{kind}"] = ours[f"{one}.layer_norm1.{kind}"]
                theirs[f"{other}.ln_2.{kind}"] = ours[f"{one}.layer_norm2.{kind}"]
                theirs[f"{other}.mlp.c_fc.{kind}"] = ours[f"{one}.mlp.fc1.{kind}"]
                theirs[f"{other}.mlp.c_proj.{kind}"] = ours[f"{one}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        theirs[f"visual.ln_pre.{kind}"] = ours[f"vision_model.pre_layrnorm.{kind}"]
        theirs[f"visual.ln_post.{kind}"] = ours[f"vision_model.post_layernorm.{kind}"]
        theirs[f"ln_final.{kind}"] = ours[f"text_model.final_layer_norm.{kind}"]
    theirs["visual.class_embedding"] = ours["vision_model.embeddings.class_embedding"]
    theirs["visual.positional_embedding"] = ours["vision_model.embeddings.position_embedding.weight"]
    theirs["visual.conv1.weight"] = ours["vision_model.embeddings.patch_embedding.weight"]
    theirs["visual.proj"] = ours["visual_projection.weight"].T
    theirs["text_projection"] = ours["text_projection.weight"].T
    theirs["token_embedding.weight"] = ours["text_model.embeddings.token_embedding.weight"]
    theirs["positional_embedding"] = ours["text_model.embeddings.position_embedding.weight"]
    theirs["attn_mask"] = torch.full((16, 16), -torch.inf).triu(1)
    return theirs


def write_hps(folder, clip):
    state = open_clip_state(CLIPModel.from_pretrained(clip))
    torch.save({"epoch": 3, "name": "any", "state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder


def head_state(width, prefix="layers."):
    random, sizes = torch.Generator().manual_seed(1), (width, 1024, 128, 64, 16, 1)
    state = {}
    for index, (a, b) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        state[f"{prefix}{index}.weight"] = torch.randn(b, a, generator=random) / a**0.5
        state[f"{prefix}{index}.bias"] = torch.randn(b, generator=random)
    return state


def write_image_reward(folder, safetensors=True):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = {
        "hidden_act": "gelu", "hidden_size": TEXT, "intermediate_size": 32, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
        "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 0, "vocab_size": len(words) + 2,
    }  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(config))
    random, state = torch.Generator().manual_seed(0), {}

    def layer(name, out, into):
        state[f"blip.{name}.weight"] = torch.randn(out, into, generator=random) / into**0.5
        state[f"blip.{name}.bias"] = torch.randn(out, generator=random) / 10

    def norm(name, width):
        state[f"blip.{name}.weight"] = 1 + torch.randn(width, generator=random) / 10
        state[f"blip.{name}.bias"] = torch.randn(width, generator=random) / 10

    eye = "visual_encoder"
    state[f"blip.{eye}.cls_token"] = torch.randn(1, 1, VISION, generator=random)
    state[f"blip.{eye}.pos_embed"] = torch.randn(1, 1 + 16, VISION, generator=random)
    layer(f"{eye}.patch_embed.proj", VISION, 3 * 64)
    state[f"blip.{eye}.patch_embed.proj.weight"] = state[f"blip.{eye}.patch_embed.proj.weight"].reshape(VISION, 3, 8, 8)
    for i in range(2):
        block = f"{eye}.blocks.{i}"
        norm(f"{block}.norm1", VISION), norm(f"{block}.norm2", VISION)
        layer(f"{block}.attn.qkv", 3 * VISION, VISION), layer(f"{block}.attn.proj", VISION, VISION)
        layer(f"{block}.mlp.fc1", 96, VISION), layer(f"{block}.mlp.fc2", VISION, 96)
    norm(f"{eye}.norm", VISION)
    text = "text_encoder"
    state[f"blip.{text}.embeddings.position_ids"] = torch.arange(64)[None]
    state[f"blip.{text}.embeddings.word_embeddings.weight"] = torch.randn(len(words) + 2, TEXT, generator=random)
    state[f"blip.{text}.embeddings.position_embeddings.weight"] = torch.randn(64, TEXT, generator=random)
    norm(f"{text}.embeddings.LayerNorm", TEXT)
    for i in range(2):
        one = f"{text}.encoder.layer.{i}"
        for attention, width in (("attention", TEXT), ("crossattention", VISION)):
            layer(f"{one}.{attention}.self.query", TEXT, TEXT)
            layer(f"{one}.{attention}.self.key", TEXT, width), layer(f"{one}.{attention}.self.value", TEXT, width)
            layer(f"{one}.{attention}.output.dense", TEXT, TEXT), norm(f"{one}.{attention}.output.LayerNorm", TEXT)
        layer(f"{one}.intermediate.dense", 32, TEXT), layer(f"{one}.output.dense", TEXT, 32)
        norm(f"{one}.output.LayerNorm", TEXT)
    layer("vision_proj", 8, VISION), layer("text_proj", 8, TEXT)
    state |= head_state(TEXT, "mlp.layers.")
    if safetensors:
        save_file(state, folder / "ImageReward.safetensors")
    else:
        torch.save(state, folder / "ImageReward.pt")
    return folder
