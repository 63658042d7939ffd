"""Scores of the `image-reward` package itself; run as a script by the test, in an environment that has it.

    python image_reward_reference.py FOLDER tiny|released

writes random weights to FOLDER/ImageReward.pt and what the package says about them to FOLDER/expected.safetensors. The package was
written for transformers 4 and imports `clip`, `fairscale` and training code it does not need to score; these are stood in for, all
that makes the score is its own: its ImageReward class, BERT, vision transformer, preprocessing with torchvision, and timm's patches.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch

registered = torch.library.Library("torchvision", "DEF")  # a CUDA torchvision on a CPU torch lacks its operators
for name in ("nms", "qnms"):
    registered.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import BertTokenizer, modeling_utils, pytorch_utils  # noqa: E402

FOLDER, SIZE = Path(sys.argv[1]), sys.argv[2]


def stand_ins():
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "fairscale.nn.checkpoint.checkpoint_activations"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["fairscale.nn.checkpoint.checkpoint_activations"].checkpoint_wrapper = lambda module: module
    root = Path(importlib.util.find_spec("ImageReward").submodule_search_locations[0])
    for name, where in (("ImageReward", root), ("ImageReward.models", root / "models")):
        sys.modules[name] = types.ModuleType(name)  # without running its __init__, which imports all of its training code
        sys.modules[name].__path__ = [str(where)]
    for name in ("apply_chunking_to_forward", "prune_linear_layer"):
        setattr(modeling_utils, name, getattr(pytorch_utils, name))
    modeling_utils.find_pruneable_heads_and_indices = None
    if not hasattr(transformers, "file_utils"):
        sys.modules["transformers.file_utils"] = types.ModuleType("transformers.file_utils")
        sys.modules["transformers.file_utils"].ModelOutput = transformers.utils.ModelOutput
    BertTokenizer.additional_special_tokens_ids = property(lambda self: self.convert_tokens_to_ids(["[ENC]"]))
    from_pretrained = BertTokenizer.from_pretrained
    BertTokenizer.from_pretrained = lambda name: from_pretrained(FOLDER)


def invert(self, mask):
    """As transformers 4 had it."""
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return (1.0 - mask.to(torch.float32)) * torch.finfo(torch.float32).min


stand_ins()
from ImageReward.ImageReward import ImageReward  # noqa: E402
from ImageReward.models.BLIP import blip_pretrain, med, vit  # noqa: E402

med.BertModel.all_tied_weights_keys = {}
med.BertModel.invert_attention_mask = invert
med.BertModel.get_head_mask = lambda self, mask, layers, *_: [None] * layers
if SIZE == "tiny":
    small = {"img_size": 224, "patch_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2}
    blip_pretrain.create_vit = lambda *_: (vit.VisionTransformer(**small), 128)

torch.manual_seed(0)
model = ImageReward(FOLDER / "med_config.json").eval()
with torch.no_grad():
    for parameter in model.parameters():  # at its initialisation the score hardly depends on anything
        parameter.add_(0.05 * torch.randn_like(parameter))
torch.save(model.state_dict(), FOLDER / "ImageReward.pt")
given = load_file(FOLDER / "given.safetensors")
prompts = (FOLDER / "prompts.txt").read_text().split("\n")
tokens = model.blip.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
pixels = given["pixels"].requires_grad_()
scores = model.score_gard(tokens.input_ids, tokens.attention_mask, pixels)[:, 0]
scores.sum().backward()
whole = [model.score(prompt, Image.open(FOLDER / f"{i}.png")) for i, prompt in enumerate(prompts)]
shown = torch.stack([model.preprocess(Image.open(FOLDER / f"{i}.png")) for i in range(len(prompts))])
expected = {"scores": scores.detach(), "gradient": pixels.grad, "whole": torch.tensor(whole), "shown": shown}
save_file(expected, FOLDER / "expected.safetensors")
