"""Number formats by their names in recipes, apart from what reads models, which takes seconds to import."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
