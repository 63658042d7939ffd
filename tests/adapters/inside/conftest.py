"""FastVideo imports torchvision, whose wheel on PyPI is built for another torch: without its operators it does not import.

Nothing here calls one; declaring their names is enough.
"""

import torch

_DECLARED = torch.library.Library("torchvision", "DEF")
for _name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d"):
    _DECLARED.define(f"{_name}(Tensor x) -> Tensor")
    _DECLARED.define(f"_{_name}_backward(Tensor x) -> Tensor")
for _name in ("nms", "qnms", "qroi_align"):
    _DECLARED.define(f"{_name}(Tensor x) -> Tensor")
