"""Networks read tensor by tensor are those that `from_pretrained` makes; broken files are said, not found out while sharding."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from amd_plugin.errors import InputError
from amd_plugin.models.lazy_weights import Weights, materialize_meta
from amd_plugin.models.pretrained import Pretrained


@pytest.fixture
def copied(pipeline_folder, tmp_path):
    """A tiny Wan on disk that may be broken; returns (folder, family, path of its transformer)."""
    from amd_plugin import get_plugin_manager

    folder = tmp_path / "wan"
    shutil.copytree(pipeline_folder("wan"), folder)
    family = Pretrained(str(folder)).family(get_plugin_manager().families())
    return Pretrained(str(folder)), family, folder / "transformer"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["wan", "sdxl", "sd3", "dit"])
def test_outlined_and_filled_is_from_pretrained(family, dtype, pipeline_folder, plugins):
    where = Pretrained(str(pipeline_folder(family)))
    kind = where.family(plugins.families())
    network, weights = where.outlined_network(kind, dtype)
    assert all(p.is_meta for p in network.parameters()) and not any(b.is_meta for b in network.buffers())
    made, expected = (
        {**dict(n.named_parameters()), **dict(n.named_buffers())}
        for n in (materialize_meta(network, weights), where.network(kind, dtype))
    )
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        assert made[name].dtype == value.dtype and torch.equal(made[name], value), name


def test_files_in_several_parts(copied):
    where, family, folder = copied
    single = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    network, weights = where.outlined_network(family, torch.float32)
    assert all(torch.equal(value, tensors[name]) for name, value in materialize_meta(network, weights).state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.popitem(), "found none"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, 5)}), r"found \(3, 5\)"),
    ],
)
def test_tensors_that_do_not_fit(change, said, copied):
    where, family, folder = copied
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=said):
        where.outlined_network(family, torch.float32)


def test_files_that_are_missing_or_cut_short(copied):
    where, family, folder = copied
    single = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(InputError, match=r"has neither .*fp16.* nor"):
        Weights(folder, "fp16")
    single.write_bytes(single.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        where.outlined_network(family, torch.float32)
    single.unlink()
    with pytest.raises(InputError, match="has neither"):
        where.outlined_network(family, torch.float32)
