"""Student, fake score and teacher as roles of networks: networks of their own, or adapters on a base that they share.

With ``roles: shared_base`` one copy of the base weights serves all three. Student and fake score are LoRA adapters on it, and
the teacher is the base with all adapters off. Each call of a role switches the base to that role.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from amd_plugin.config import LoraConfig, ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.lazy_weights import LazyTensor, TensorReader, materialize, materialize_meta
from amd_plugin.models.lora_files import Layers, add_layers, start_adapter
from amd_plugin.models.step_conditioning import OUTCOME, RUNGS, Conditions, add_tables, remove_tables, tables_of
from amd_plugin.randomness import generator

NamedTensors = dict[str, Tensor | LazyTensor]


class WeightShares(Protocol):
    """The share of a role's fp32 weights that each process holds, see `amd_plugin.sharding.shares.Shares`.

    Attributes:
        flat: this process's pieces, end to end.
    """

    flat: list[Tensor]

    def sync_from_masters(self) -> None:
        """Copies `flat` into the network."""
        ...

    def named(self, values: list[Tensor]) -> dict[str, LazyTensor]:
        """`values`, laid out like `flat`, by parameter."""
        ...

    def take_named(self, values: list[Tensor], named: Mapping[str, Any]) -> None:
        """Copies the result of `named` into `values`."""
        ...


class Role:
    """One of the three roles; a call of the role is a call of its network with the role's adapter.

    Args:
        network: the network without wrappers, shared with other roles or not.
        adapter: the name of the role's adapter in the network; None for the network's own weights.
        frozen: whether the role trains nothing.
        shared: whether other roles use the same network.

    Attributes:
        network: the network.
        adapter, frozen, shared: as above.
        wrapped: the module that calls with gradient go through, which averages gradients over processes; set by the host.
        rung: the exit rungs [B] of the samples in the next calls, or one for all; networks without a table of rungs ignore it.
        outcome: the outcomes [B] of the samples in the next calls, or one for all; networks without a table of them ignore it.
        dtype: the precision of the network's inputs.
        autocast: whether mixed precision applies to the network.
        shares: the shares of the trained weights if each process holds one, else None; set by the host.
    """

    def __init__(self, network: nn.Module, adapter: str | None = None, *, frozen: bool = False, shared: bool = False):
        self.network, self.adapter, self.shared, self.frozen = network, adapter, shared, frozen
        self.wrapped: nn.Module = network
        self.rung: Tensor | int | None = None
        self.outcome: Tensor | int | None = None
        self._rungs, self._outcomes = tables_of(network, RUNGS), tables_of(network, OUTCOME)
        self.autocast = True
        self.shares: WeightShares | None = None
        self._layers = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        trained = [] if frozen else [name for name, _ in network.named_parameters()]
        self._names = trained if adapter is None else [name for name in trained if f".{adapter}." in name]
        # A diffusers model keeps some parameters in fp32 whatever its own dtype is, and the first parameter may be one of them.
        model_dtype = getattr(network, "dtype", None)
        first = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = model_dtype if isinstance(model_dtype, torch.dtype) else first

    @property
    def takes_outcome(self) -> bool:
        """Whether the network has a table of outcomes, and the role selects its rows."""
        return self._outcomes is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output with this role's adapter."""
        self.activate()
        return (self.wrapped if torch.is_grad_enabled() and not self.frozen else self.network)(*args, **kwargs)

    def activate(self) -> None:
        """Switches a shared base to this role, for a forward pass or for a backward pass that recomputes activations."""
        if self._rungs is not None:
            self._rungs.choose(self.rung)
        if self._outcomes is not None:
            self._outcomes.choose(self.outcome)
        active = getattr(self.network, "_role", None)
        if not self._layers or active == (self.adapter,):
            return
        for layer in self._layers:
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter(self.adapter)
        self.network._role = (self.adapter,)  # type: ignore[assignment] # a mark of ours on a module, which expects tensors

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that this role trains."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that this role trains, by name."""
        own = dict(self.network.named_parameters())
        return {name: own[name] for name in self._names}

    def master_weights(self) -> list[Tensor]:
        """The fp32 weights that this process trains: the parameters, or its shares of them."""
        return [p.detach() for p in (self.parameters() if self.shares is None else self.shares.flat)]

    def sync_from_masters(self) -> None:
        """Copies the fp32 master weights into the network. Call on every process."""
        if self.shares is not None:
            self.shares.sync_from_masters()

    def named(self, values: list[Tensor]) -> NamedTensors:
        """`values`, laid out like `master_weights`, by parameter; lazy tensors if each process holds a share."""
        if self.shares is not None:
            return {**self.shares.named(values)}
        return dict(zip(self._names, values, strict=True))

    @torch.no_grad()
    def take_named(self, values: list[Tensor], named: Mapping[str, Any]) -> None:
        """Copies the result of `named` into `values`; raises ValueError where a shape differs."""
        if self.shares is not None:
            self.shares.take_named(values, named)
            return
        for name, value in zip(self._names, values, strict=True):
            if value.shape != named[name].shape:  # which a copy would repeat until it fits
                raise ValueError(f"{name}: must be {list(value.shape)}, got {list(named[name].shape)}")
            value.copy_(materialize(named[name]))

    def state_dict(self) -> NamedTensors:
        """The role's part of a checkpoint: its trained weights and, for a whole network, its buffers."""
        whole = self.network.state_dict() if self.adapter is None else {}
        return {**whole, **self.named(self.master_weights())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the result of `state_dict`.

        Raises:
            ValueError, RuntimeError: for a state with other parameters.
        """
        if self.adapter is None and self.shares is None:
            self.network.load_state_dict({name: materialize(value) for name, value in state.items()})
            return
        own = self.state_dict()
        if own.keys() != state.keys():
            owner = "the network" if self.adapter is None else f"adapter '{self.adapter}'"
            raise ValueError(f"{owner} has other parameters than the state given")
        self.take_named(self.master_weights(), state)
        self.sync_from_masters()
        for name, buffer in self.network.named_buffers():
            if name in own:
                buffer.copy_(materialize(state[name]))

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that diffusers' ``save_lora_weights`` takes.

        Raises:
            ValueError: for a role without an adapter.
        """
        if self.adapter is None:
            raise ValueError("adapter_state_dict: this role has no adapter")
        state: dict[str, Tensor] = get_peft_model_state_dict(self.network, adapter_name=self.adapter)
        return state

    @contextmanager
    def without_grad(self) -> Iterator[None]:
        """Inside, gradients flow through the role to its inputs but not to its parameters, as another role's loss needs."""
        parameters = self.parameters()
        self.activate()
        for parameter in parameters:
            parameter.requires_grad_(False)
        wrapped, self.wrapped = self.wrapped, self.network
        try:
            yield
        finally:
            self.wrapped = wrapped
            for parameter in parameters:
                parameter.requires_grad_(True)

    def merged(self) -> nn.Module:
        """A copy of the network with the adapter's weights merged into its own, and all adapters removed."""
        self.activate()
        network = copy.deepcopy(self.network)
        remove_tables(network)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    if self.adapter is not None:
                        child.merge(adapter_names=[self.adapter])
                    setattr(parent, name, child.get_base_layer())
        for mark in ("peft_config", "_role"):
            network.__dict__.pop(mark, None)
        return network


class StartNetworks(NamedTuple):
    """The networks from which the roles of a run start.

    Attributes:
        teacher: the teacher, frozen; the base where roles share one.
        student: the network from which the student starts; None for the teacher's.
        read: the reader of the teacher's parameters on the meta device; copies of the teacher need their values.
        conditions: the tables that condition the fake score; None for none.
        loras: the layers from which roles start, on top of the teacher's weights, by role.
    """

    teacher: nn.Module
    student: nn.Module | None = None
    read: TensorReader | None = None
    conditions: Conditions | None = None
    loras: Mapping[str, Layers] = MappingProxyType({})


def make_roles(config: ModelConfig, start: StartNetworks, seed: int, *, whole: bool = True) -> dict[str, Role]:
    """``student``, ``fake_score`` and ``teacher``, with trained weights in fp32.

    Args:
        config: the recipe's model section, with the roles that are adapters.
        start: the networks from which roles start.
        seed: the seed of the adapters' initial weights.
        whole: whether networks that are trained in full are read at once; False leaves their parameters on the meta device.

    Raises:
        OptionError: for adapters on a network without the layers of ``lora.target_modules``.
    """
    if config.roles == "shared_base":
        base = start.teacher
        for role in ("student", "fake_score"):
            _add_adapter(base, role, config.lora, seed)
            start_adapter(base, role, start.loras.get(role, {}), f"{role}_lora")
        if start.conditions is not None:
            add_tables(base, "fake_score", start.conditions)
        shared = {role: Role(base, role, shared=True) for role in ("student", "fake_score")}
        return {**shared, "teacher": Role(base, frozen=True, shared=True)}
    roles = {"teacher": Role(start.teacher, frozen=True)}
    for name, weights in (("student", config.student), ("fake_score", config.fake_score)):
        origin = start.student if name == "student" and start.student is not None else start.teacher
        network = copy.deepcopy(origin)
        if start.read is not None and (whole or weights == "lora"):
            network = materialize_meta(network, start.read)
        if weights == "lora":
            _add_adapter(network, name, config.lora, seed)
            start_adapter(network, name, start.loras.get(name, {}), f"{name}_lora")
        else:
            network.float().requires_grad_(True)
            add_layers(network, start.loras.get(name, {}))
        if name == "fake_score" and start.conditions is not None:
            add_tables(network, name, start.conditions)
        roles[name] = Role(network, name if weights == "lora" else None)
    return roles


def _add_adapter(network: nn.Module, name: str, config: LoraConfig, seed: int) -> None:
    adapter = PeftConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(config.target_modules))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Two adapters on one base are intended.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(generator(seed, "adapter", name).initial_seed())
            inject_adapter_in_model(adapter, network, name)
    except ValueError as error:
        kinds = sorted({n.rpartition(".")[2] for n, m in network.named_modules() if isinstance(m, nn.Linear)})
        message = f"none of these layers is in a {type(network).__name__}, whose linear layers end in {', '.join(kinds)}"
        raise OptionError("lora.target_modules", f"{message}; got {list(config.target_modules)}") from error
    for parameter_name, parameter in network.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = parameter.data.float()
