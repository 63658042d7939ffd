"""Student, fake score and teacher as roles that networks play: networks of their own, or adapters on a base they share.

With ``roles: shared_base`` one copy of the base weights serves all three: student and fake score are LoRA adapters on it, and
the teacher is the base with all adapters off. A role switches the base to itself whenever it is called.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from amd_plugin.config import LoraConfig, ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.lazy_weights import TensorReader, materialize, materialize_meta
from amd_plugin.models.step_conditioning import Where, add_rungs, remove_rungs, rungs_of
from amd_plugin.randomness import generator


class Role:
    """One of the three roles; calls its network as that role.

    Args:
        network: plain; shared with other roles or not.
        adapter: name of the role's adapter on it; None for the network's own weights.
        trainable: names of the parameters that are this role's to train; None for all, () for a frozen role.

    Attributes:
        network: as given.
        wrapped: what calls with gradient go through, so that gradients are joined over processes; set by the host.
        shared: other roles use the same network.
        rung: which rung's samples the role is asked about, from its next call on; heard where its network has tables for it.
        dtype: that its network computes in.
        autocast: whether mixed precision is for it to choose where to compute in another.
        shares: `amd_plugin.sharding.shares.Shares` where each process keeps a part of the trained weights; set by the host.
    """

    def __init__(self, network: nn.Module, adapter: str | None = None, *, frozen: bool = False, shared: bool = False):
        self.network, self.adapter, self.shared, self.frozen = network, adapter, shared, frozen
        self.wrapped: nn.Module = network
        self.rung: int | None = None
        self._rungs = rungs_of(network)
        self.autocast, self.shares = True, None
        self._layers = [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
        mine = [] if frozen else [name for name, _ in network.named_parameters()]
        self._names = mine if adapter is None else [name for name in mine if f".{adapter}." in name]
        # A diffusers model knows which of its parameters are kept in fp32 whatever the rest is in; the first may be one.
        known = getattr(network, "dtype", None)
        first = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = known if isinstance(known, torch.dtype) else first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output as this role."""
        self.activate()
        return (self.wrapped if torch.is_grad_enabled() and not self.frozen else self.network)(*args, **kwargs)

    def activate(self) -> None:
        """Switches a shared base to this role, for a forward, or for the backward of one that recomputes activations."""
        if self._rungs is not None:
            self._rungs.choose(self.rung)
        active = getattr(self.network, "_role", None)
        if not self._layers or active == (self.adapter,):
            return
        for layer in self._layers:
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter(self.adapter)
        self.network._role = (self.adapter,)  # type: ignore[assignment]

    def parameters(self) -> list[nn.Parameter]:
        """Those that are this role's to train."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Likewise, by name."""
        own = dict(self.network.named_parameters())
        return {name: own[name] for name in self._names}

    def master_weights(self) -> list[Tensor]:
        """The fp32 tensors that this process trains: the parameters, or its shares of them."""
        return [p.detach() for p in (self.parameters() if self.shares is None else self.shares.flat)]

    def sync_from_masters(self) -> None:
        """Has the network play with `master_weights` as they are now. Call on every process."""
        if self.shares is not None:
            self.shares.sync_from_masters()

    def named(self, values: list[Tensor]) -> dict[str, Any]:
        """Tensors like `master_weights` by parameter; each a `LazyTensor` where several processes have a share."""
        return dict(zip(self._names, values, strict=True)) if self.shares is None else self.shares.named(values)

    @torch.no_grad()
    def take_named(self, values: list[Tensor], named: Mapping[str, Any]) -> None:
        """Takes what `named` gave back into `values`."""
        if self.shares is not None:
            self.shares.take_named(values, named)
            return
        for name, value in zip(self._names, values, strict=True):
            value.copy_(materialize(named[name]))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of this role: what it trains and, of a whole network, its buffers."""
        kept = self.network.state_dict() if self.adapter is None else {}
        return {**kept, **self.named(self.master_weights())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        if self.adapter is None and self.shares is None:
            self.network.load_state_dict({name: materialize(value) for name, value in state.items()})
            return
        own = self.state_dict()
        if own.keys() != state.keys():
            who = "the network" if self.adapter is None else f"adapter '{self.adapter}'"
            raise ValueError(f"{who} has other parameters than the state given")
        self.take_named(self.master_weights(), state)
        self.sync_from_masters()
        for name, buffer in self.network.named_buffers():
            if name in own:
                buffer.copy_(materialize(state[name]))

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that diffusers' ``save_lora_weights`` takes."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self.network, adapter_name=self.adapter)
        return state

    @contextmanager
    def without_grad(self) -> Iterator[None]:
        """Takes gradients to its inputs but none to its parameters: another role's loss passes through."""
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
        """A copy of the network with the adapter's weights in its own, and no trace of adapters."""
        self.activate()
        network = copy.deepcopy(self.network)
        remove_rungs(network)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, BaseTunerLayer):
                    if self.adapter is not None:
                        child.merge(adapter_names=[self.adapter])
                    setattr(parent, name, child.get_base_layer())
        for trace in ("peft_config", "_role"):
            network.__dict__.pop(trace, None)
        return network


class EMA:
    """The exponential moving average of a role's weights, which is what is evaluated and exported.

    Args:
        role: whose.
        decay: share of the average that one update keeps.
    """

    def __init__(self, role: Role, decay: float):
        self._role, self._updates = role, 0
        self._blend = get_ema_multi_avg_fn(decay)
        self._shadow = [weight.clone() for weight in role.master_weights()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the role's weights in; the first time, takes them over."""
        if self._updates == 0:
            torch._foreach_copy_(self._shadow, self._role.master_weights())
        else:
            self._blend(self._shadow, self._role.master_weights(), self._updates)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The role plays with its averaged weights meanwhile. Enter on every process where each has a share of them."""
        masters = self._role.master_weights()
        kept = [weight.clone() for weight in masters]
        torch._foreach_copy_(masters, self._shadow)
        self._role.sync_from_masters()
        try:
            yield
        finally:
            torch._foreach_copy_(masters, kept)
            self._role.sync_from_masters()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"updates": self._updates, "weights": self._role.named(self._shadow)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._updates = int(state["updates"])
        self._role.take_named(self._shadow, state["weights"])


def make_roles(
    config: ModelConfig, teacher: nn.Module, student: nn.Module | None, seed: int, read: TensorReader | None = None,
    time_embeddings: Where | None = None, *, whole: bool = True,
) -> dict[str, Role]:  # fmt: skip
    """``student``, ``fake_score`` and ``teacher`` from the teacher's network, trainable weights in fp32.

    Args:
        config: which roles are adapters, and on what.
        teacher: frozen; with a shared base it becomes the base.
        student: what the student starts from, if not the teacher.
        seed: of the adapters' initial weights.
        read: values of the parameters of `teacher` that are on the meta device; the others' copies need them.
        time_embeddings: where the fake score is told the exit rung, if it is.
        whole: do not leave such parameters there, in networks that are trained in full, for who reads them later.

    Raises:
        OptionError: for adapters on a network that has none of the wanted layers.
    """
    if config.roles == "shared_base":
        for role in ("student", "fake_score"):
            _add_adapter(teacher, role, config.lora, seed)
        if time_embeddings is not None:
            add_rungs(teacher, "fake_score", time_embeddings(teacher), config.student_steps)
        shared = {role: Role(teacher, role, shared=True) for role in ("student", "fake_score")}
        return {**shared, "teacher": Role(teacher, frozen=True, shared=True)}
    roles = {"teacher": Role(teacher, frozen=True)}
    for name, how in (("student", config.student), ("fake_score", config.fake_score)):
        network = copy.deepcopy(student if name == "student" and student is not None else teacher)
        network = materialize_meta(network, read) if read is not None and (whole or how == "lora") else network
        if how == "lora":
            _add_adapter(network, name, config.lora, seed)
        else:
            network.float().requires_grad_(True)
        if name == "fake_score" and time_embeddings is not None:
            add_rungs(network, name, time_embeddings(network), config.student_steps)
        roles[name] = Role(network, name if how == "lora" else None)
    return roles


def _add_adapter(network: nn.Module, name: str, config: LoraConfig, seed: int) -> None:
    how = PeftConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(config.target_modules))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two roles on one base are meant
            torch.manual_seed(generator(seed, "adapter", name).initial_seed())
            inject_adapter_in_model(how, network, name)
    except ValueError as error:
        kinds = sorted({n.rpartition(".")[2] for n, m in network.named_modules() if isinstance(m, nn.Linear)})
        what = f"none of these layers is in a {type(network).__name__}, whose linear layers end in {', '.join(kinds)}"
        raise OptionError("lora.target_modules", f"{what}; got {list(config.target_modules)}") from error
    for parameter_name, parameter in network.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = parameter.data.float()
