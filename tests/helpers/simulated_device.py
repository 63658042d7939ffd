"""A device that is none: tensors of the CPU that count as a GPU's, so that copies to the host can be seen without a GPU.

Whatever is made or moved there by `device=SIMULATED`, and whatever is computed from it, is on it. Like a GPU it refuses to compute
with tensors of the host. What needs its numbers on the host is recorded: `item`, `tolist`, `bool`, `cpu`, masks as indices, ...
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

SIMULATED, HOST = torch.device("cpu", 0), torch.device("cpu")  # torch computes on both alike
WAITS = {
    "item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "equal", "allclose",
    "bincount", "is_nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__", "__format__",
}  # fmt: skip
# These take tensors of two devices.
FREE = {"copy_", "__get__", "__set__", "__getitem__", "__setitem__", "__deepcopy__", "_has_compatible_shallow_copy_type"}
PACKAGE = str(Path(__file__).parents[2] / "amd_plugin")


def there(value):
    return isinstance(value, Tensor) and getattr(value, "_is_there", False)


def put(value):
    if isinstance(value, Tensor):
        value._is_there = True
    return value


class SimulatedDevice(TorchFunctionMode):
    """Records the places of the package that wait for the device."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if function == Tensor.device.__get__:
            return SIMULATED if there(args[0]) else HOST
        target = self._target(name, args, kwargs)
        if target is not None:
            return self._moved(function, name, args, kwargs, there(args[0]) if name == "to" else False, target)
        if not any(there(tensor) for tensor in tensors):
            return function(*args, **kwargs)
        if name in WAITS or self._by_mask(name, args):
            self._record(name)
            made = function(*args, **kwargs)
            return made.view_as(made) if name == "cpu" else tree_map(put, made)
        mixed = [tensor for tensor in tensors if not there(tensor) and tensor.dim() > 0]
        if mixed and name not in FREE:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, got one {tuple(mixed[0].shape)} on the host"
            )
        if name == "__set__" and there(args[1]):  # as `Module.to` moves parameters
            put(args[0])
        return tree_map(put, function(*args, **kwargs))

    @staticmethod
    def _target(name, args, kwargs):
        """The device that a call makes or moves its tensor on; None where it says nothing about that."""
        given = [kwargs.get("device"), *(args[1:] if name == "to" else ())]
        for value in given:
            if isinstance(value, str | torch.device):
                return SIMULATED if torch.device(value) == SIMULATED else HOST
            if name == "to" and isinstance(value, Tensor):
                return SIMULATED if there(value) else HOST
        return None

    def _moved(self, function, name, args, kwargs, was_there, target):
        made = function(*args, **kwargs)
        if was_there and target == HOST:
            self._record(name)
        if name == "to":
            made = made.view_as(made)  # `to` gives the same tensor where nothing changes
        return put(made) if target == SIMULATED else made

    @staticmethod
    def _by_mask(name, args):
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        return any(there(leaf) and leaf.dtype == torch.bool for leaf in tree_leaves(index))

    def _record(self, name):
        stack = traceback.extract_stack()[:-2]
        stack = [frame for frame in stack if frame.filename != __file__]
        if name == "to" and "/torch/nn/utils/" in stack[-1].filename:  # to a device that it was told below Python
            return
        frames = [frame for frame in stack if frame.filename.startswith(PACKAGE)]
        place = f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "elsewhere"
        self.waits[f"{place}: {name.strip('_')}"] += 1


@contextmanager
def simulated_device(monkeypatch):
    """A context in which accelerate's device is the simulated one; put the weights there once they are loaded."""
    monkeypatch.setattr(Accelerator, "device", property(lambda self: SIMULATED))
    with SimulatedDevice() as device:
        yield device


def put_weights(*networks):
    """Puts the weights of `networks` on the device: what moves a module keeps its parameters."""
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            put(tensor)
