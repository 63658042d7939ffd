"""Files written one tensor after the other are those that safetensors writes."""

import pytest
import torch
from safetensors.torch import load_file

from amd_plugin.host.checkpoint import streamed
from amd_plugin.models.lazy_weights import LazyTensor


@pytest.fixture
def tensors():
    return {
        "a": torch.arange(6.0).view(2, 3), "transposed": torch.arange(6.0).view(2, 3).T, "step": torch.tensor(3.0),
        "none": torch.zeros(0, 4), "\u00e9": torch.tensor([True, False, True]), "bf16": torch.randn(3).bfloat16(),
        "many": torch.tensor([2**40, -1]), "fp64": torch.tensor([1e-300], dtype=torch.float64),
    }  # fmt: skip


def test_what_is_written_is_read(tensors, tmp_path):
    shared = torch.linspace(0, 1, 7)
    streamed.write(tmp_path / "x.safetensors", {**tensors, "later": LazyTensor(shared.shape, lambda: shared)})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == {*tensors, "later"}
    for name, value in {**tensors, "later": shared}.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


@pytest.mark.parametrize("writes", [True, False])
def test_all_is_read_in_turn_even_where_nothing_can_be_written(writes, tensors, tmp_path):
    turns = []
    shared = {str(i): LazyTensor(torch.Size([1]), lambda i=i: turns.append(i) or torch.zeros(1)) for i in range(3)}
    if writes:
        with pytest.raises(OSError, match="No such file"):
            streamed.write(tmp_path / "missing" / "x", {**tensors, **shared})
    else:
        streamed.write(tmp_path / "x", {**tensors, **shared}, writes=False)
        assert not (tmp_path / "x").exists()
    assert turns == [0, 1, 2]
