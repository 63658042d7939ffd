"""A tiny CLIP of `open_clip` itself: its state dict and embeddings; run as a script by the test, in an environment that has it.

    python open_clip_reference.py FOLDER

reads FOLDER/given.safetensors (pixels, tokens) and writes FOLDER/HPS_v2.1_compressed.pt and FOLDER/expected.safetensors.
"""

import sys
from pathlib import Path

import torch

registered = torch.library.Library("torchvision", "DEF")  # a CUDA torchvision on a CPU torch lacks its operators
for name in ("nms", "qnms"):
    registered.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

FOLDER = Path(sys.argv[1])
given = load_file(FOLDER / "given.safetensors")
torch.manual_seed(0)
vision = CLIPVisionCfg(layers=2, width=32, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=32)
text = CLIPTextCfg(context_length=16, vocab_size=int(given["vocabulary"]), width=32, heads=2, layers=2, mlp_ratio=2.0)
model = CLIP(24, vision, text).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    seen = model.encode_image(given["pixels"], normalize=True)
    read = model.encode_text(given["tokens"], normalize=True)
torch.save({"state_dict": model.state_dict()}, FOLDER / "HPS_v2.1_compressed.pt")
save_file({"cosines": (seen * read).sum(-1)}, FOLDER / "expected.safetensors")
