"""What each process keeps of a role that DeepSpeed trains: its shares of fp32 weights and of everything shaped like them.

DeepSpeed lays a role's weights end to end in fp32 and gives every process a piece. Adam's moments and the average lie in pieces
of the same layout, so that one description, where a parameter's elements are, puts all of them together and takes them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amd_plugin.models.lazy_weights import LazyTensor, materialize


class Piece(NamedTuple):
    """Elements of one parameter that this process keeps.

    Attributes:
        flat, offset: they begin there, in that one of the flat tensors.
        start, size: they are these of the flattened parameter; padding is not counted.
    """

    flat: int
    offset: int
    start: int
    size: int


class Shares:
    """The trained weights of a DeepSpeed engine's network, in fp32, and how they are spread.

    Args:
        optimizer: the engine's, of ZeRO stage 2 or 3.
        parameters: those it trains, by name.

    Attributes:
        flat: this process's pieces, end to end; training changes them in place.
        names: of the parameters.
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, nn.Parameter]):
        self._optimizer, self._parameters, self.names = optimizer, parameters, list(parameters)
        self._gathered = hasattr(optimizer, "fp32_partitioned_groups_flat")  # stage 3: weights are spread as their masters are
        held = optimizer.fp32_partitioned_groups_flat if self._gathered else optimizer.single_partition_of_fp32_groups
        self.flat: list[Tensor] = list(held)
        piece = self._piece_of_3 if self._gathered else self._piece_of_2
        self._pieces = {name: piece(parameter) for name, parameter in parameters.items()}

    @torch.no_grad()
    def whole(self, values: list[Tensor], name: str) -> Tensor:
        """The parameter `name` of `values`, tensors laid out like `flat`. Call on every process; all get it, in fp32."""
        flat, offset, start, size = self._pieces[name]
        shape = self._shape(name)
        found = torch.zeros(shape.numel(), dtype=torch.float32, device=values[flat].device)
        found[start : start + size] = values[flat][offset : offset + size]
        dist.all_reduce(found)
        return found.view(shape)

    @torch.no_grad()
    def take(self, values: list[Tensor], name: str, whole: Tensor) -> None:
        """Keeps this process's piece of `whole`, the parameter `name`, in `values`."""
        flat, offset, start, size = self._pieces[name]
        if whole.shape != self._shape(name):
            raise ValueError(f"{name} has shape {tuple(self._shape(name))}, got {tuple(whole.shape)}")
        values[flat][offset : offset + size] = whole.flatten()[start : start + size].to(values[flat])

    def named(self, values: list[Tensor]) -> dict[str, LazyTensor]:
        """All of `values` by parameter; reading one makes it whole, on every process that reads along."""
        return {name: LazyTensor(self._shape(name), partial(self.whole, values, name)) for name in self._pieces}

    def take_named(self, values: list[Tensor], named: Mapping[str, Any]) -> None:
        """Takes back what `named` gave, one parameter after the other."""
        for name in self._pieces:
            self.take(values, name, materialize(named[name]))

    @torch.no_grad()
    def sync_from_masters(self) -> None:
        """Gives the network, in its own precision, what `flat` holds. Call on every process."""
        if not self._gathered:
            self._optimizer.update_lp_params()
            return
        for name, (flat, offset, _, size) in self._pieces.items():
            self._parameters[name].ds_tensor[:size].copy_(self.flat[flat][offset : offset + size])

    def _shape(self, name: str) -> torch.Size:
        parameter = self._parameters[name]
        return torch.Size(parameter.ds_shape) if self._gathered else parameter.shape

    def _piece_of_3(self, parameter: Any) -> Piece:
        flat, offset, size = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        start = size * dist.get_rank()
        return Piece(flat, offset, start, max(0, min(size, parameter.ds_numel - start)))

    def _piece_of_2(self, parameter: Any) -> Piece:
        mine = parameter._hp_mapping
        if mine is None:
            return Piece(0, 0, 0, 0)
        inside, held = mine.lp_fragment_address, mine.hp_fragment_address
        return Piece(mine.param_group_index, held.start, inside.start, inside.numel)


class Moments:
    """The state of an engine's optimizer as that of a plain one over the same parameters, for checkpoints.

    Args:
        optimizer: the torch optimizer that DeepSpeed drives; it has been given flat tensors instead of the parameters.
        shares: those, and which parameters, in their order.

    Attributes:
        optimizer: as given.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shares: Shares):
        self.optimizer, self._shares, self._flat, self._names = optimizer, shares, shares.flat, shares.names

    def state_dict(self) -> dict[str, Any]:
        """Like a torch optimizer's."""
        states = [self.optimizer.state.get(flat, {}) for flat in self._flat]
        group = {key: value for key, value in self.optimizer.param_groups[0].items() if key != "params"}
        groups = [{**group, "params": list(range(len(self._names)))}]
        if not all(states):
            return {"state": {}, "param_groups": groups}
        spread = {key: self._shares.named([s[key] for s in states]) for key, v in states[0].items() if v.dim()}
        single = {key: value for key, value in states[0].items() if not value.dim()}
        state = {i: {**single, **{k: spread[k][name] for k in spread}} for i, name in enumerate(self._names)}
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict`, or that of a plain optimizer, gave."""
        first = next(iter(state["state"].values()), {})
        for key, value in first.items():
            if not value.shape:
                for flat in self._flat:
                    self.optimizer.state[flat][key] = materialize(value).to(flat.device, copy=True)
                continue
            spread = [torch.zeros_like(flat) for flat in self._flat]
            self._shares.take_named(spread, {name: state["state"][i][key] for i, name in enumerate(self._names)})
            for flat, values in zip(self._flat, spread, strict=True):
                self.optimizer.state[flat][key] = values
