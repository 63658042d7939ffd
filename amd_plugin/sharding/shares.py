"""The share of a DeepSpeed-trained role that each process holds: fp32 weights and everything shaped like them.

DeepSpeed lays a role's weights end to end in fp32 and gives every process a piece. Adam's moments and the EMA lie in pieces of
the same layout. One description, the place of each parameter's elements, therefore gathers all of them and splits them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amd_plugin.models.lazy_weights import LazyTensor, materialize


class Piece(NamedTuple):
    """The elements of one parameter that this process holds.

    Attributes:
        flat: the index of the flat tensor with these elements.
        offset: the position of the first element in that flat tensor.
        start: the position of the first element in the flattened parameter.
        size: the number of elements, without padding.
    """

    flat: int
    offset: int
    start: int
    size: int


class Shares:
    """The fp32 master weights of a DeepSpeed engine, and the place of each parameter in them.

    Args:
        optimizer: the engine's optimizer, of ZeRO stage 2 or 3.
        parameters: the trained parameters by name.

    Attributes:
        flat: this process's pieces, end to end; training changes them in place.
        names: the parameters' names.
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]):
        self._optimizer, self._parameters, self.names = optimizer, parameters, list(parameters)
        self._is_stage_3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
        flat = optimizer.fp32_partitioned_groups_flat if self._is_stage_3 else optimizer.single_partition_of_fp32_groups
        self.flat: list[Tensor] = list(flat)
        piece = self._piece_of_stage_3 if self._is_stage_3 else self._piece_of_stage_2
        self._pieces = {name: piece(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def whole(self, values: list[Tensor], name: str) -> Tensor:
        """The whole parameter `name`, in fp32, from `values` laid out like `flat`. Call on every process."""
        flat, offset, start, size = self._pieces[name]
        shape = self._shape(name)
        elements = torch.zeros(shape.numel(), dtype=torch.float32, device=values[flat].device)
        elements[start : start + size] = values[flat][offset : offset + size]
        dist.all_reduce(elements)
        return elements.view(shape)

    @torch.no_grad()
    def take(self, values: list[Tensor], name: str, whole: Tensor) -> None:
        """Copies this process's piece of `whole`, the parameter `name`, into `values`."""
        flat, offset, start, size = self._pieces[name]
        if whole.shape != self._shape(name):
            raise ValueError(f"{name} has shape {tuple(self._shape(name))}, got {tuple(whole.shape)}")
        values[flat][offset : offset + size] = whole.flatten()[start : start + size].to(values[flat])

    def named(self, values: list[Tensor]) -> dict[str, LazyTensor]:
        """`values` by parameter, as lazy tensors; all processes have to read each of them."""
        return {name: LazyTensor(self._shape(name), partial(self.whole, values, name)) for name in self._pieces}

    def take_named(self, values: list[Tensor], named: Mapping[str, Any]) -> None:
        """Copies the result of `named` into `values`, one parameter after the other."""
        for name in self._pieces:
            self.take(values, name, materialize(named[name]))

    @torch.no_grad()
    def sync_from_masters(self) -> None:
        """Copies `flat` into the network, in the network's precision. Call on every process."""
        if not self._is_stage_3:
            self._optimizer.update_lp_params()
            return
        for name, (flat, offset, _, size) in self._pieces.items():
            parameter: Any = self._parameters[name]
            parameter.ds_tensor[:size].copy_(self.flat[flat][offset : offset + size])

    def _shape(self, name: str) -> torch.Size:
        parameter: Any = self._parameters[name]
        return torch.Size(parameter.ds_shape if self._is_stage_3 else parameter.shape)

    def _piece_of_stage_3(self, parameter: Any) -> Piece:
        flat, offset, size = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        start = size * dist.get_rank()
        return Piece(flat, offset, start, max(0, min(size, parameter.ds_numel - start)))

    def _piece_of_stage_2(self, parameter: Any) -> Piece:
        mapping = parameter._hp_mapping
        if mapping is None:
            return Piece(0, 0, 0, 0)
        in_parameter, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Piece(mapping.param_group_index, in_flat.start, in_parameter.start, in_parameter.numel)


class Moments:
    """The state of an engine's optimizer in the form of an unsharded optimizer over the same parameters, for checkpoints.

    Args:
        optimizer: the torch optimizer that DeepSpeed drives, over flat tensors instead of parameters.
        shares: these flat tensors, and the place of each parameter in them.
        group_sizes: the number of whole parameters in each of the optimizer's groups, in the order of the shares' names.

    Attributes:
        optimizer: the torch optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shares: Shares, group_sizes: Sequence[int]):
        self._group_sizes = group_sizes
        self.optimizer, self._shares, self._flat, self._names = optimizer, shares, shares.flat, shares.names

    def state_dict(self) -> dict[str, Any]:
        """The state in the layout of a torch optimizer's, with lazy tensors."""
        states = [self.optimizer.state.get(flat, {}) for flat in self._flat]
        groups = self._groups()
        if not all(states):
            return {"state": {}, "param_groups": groups}
        sharded = {key: self._shares.named([s[key] for s in states]) for key, v in states[0].items() if v.dim()}
        scalars = {key: value for key, value in states[0].items() if not value.dim()}
        state = {i: {**scalars, **{k: sharded[k][name] for k in sharded}} for i, name in enumerate(self._names)}
        return {"state": state, "param_groups": groups}

    def _groups(self) -> list[dict[str, Any]]:
        """Parameter groups with indices of whole parameters, which are numbered group by group."""
        groups, first = list[dict[str, Any]](), 0
        for group, size in zip(self.optimizer.param_groups, self._group_sizes, strict=True):
            options = {key: value for key, value in group.items() if key != "params"}
            groups.append({**options, "params": list(range(first, first + size))})
            first += size
        return groups

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the result of `state_dict`, or the state of an unsharded optimizer."""
        first: dict[str, Any] = next(iter(state["state"].values()), {})
        for key, value in first.items():
            if not value.shape:
                for flat in self._flat:
                    self.optimizer.state[flat][key] = materialize(value).to(flat.device, copy=True)
                continue
            sharded = [torch.zeros_like(flat) for flat in self._flat]
            self._shares.take_named(sharded, {name: state["state"][i][key] for i, name in enumerate(self._names)})
            for flat, values in zip(self._flat, sharded, strict=True):
                self.optimizer.state[flat][key] = values
