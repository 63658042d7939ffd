"""Number formats by their names in recipes, apart from what reads models, which takes seconds to import."""

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters of `network` to `dtype`, but to fp32 where its class keeps a module in that, as loading it does."""
    in_fp32 = getattr(network, "_keep_in_fp32_modules", None) or ()
    for name, parameter in network.named_parameters():
        kept = any(part in in_fp32 for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
