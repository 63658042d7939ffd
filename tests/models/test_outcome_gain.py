"""A gain of the table of outcomes: rows that learn at a rate above that of their optimizer."""

import io

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard

from amd_plugin.maths.advantage_guidance import BAD, GOOD, NONE
from amd_plugin.models.family import Features
from amd_plugin.models.step_conditioning import OUTCOME, RUNGS, Conditions, add_tables, tables_of

GAIN, RATE = 512.0, 1e-5
OUTCOMES = torch.tensor([NONE, BAD, GOOD, GOOD])


class Network(nn.Module):
    """A network whose only part embeds the time."""

    def __init__(self):
        super().__init__()
        self.time = nn.Identity()

    def forward(self, embedding):
        return self.time(embedding)


def network(gain=GAIN, dtype=torch.float32, rungs=0):
    made = Network()
    add_tables(made, "fake_score", Conditions(lambda net: [Features(net.time, 4, -1)], rungs, True, gain))
    return made.to(dtype)


def table_of(made, part=OUTCOME):
    (table,) = tables_of(made, part).tables
    return table


def rows(made):
    """The rows that the network adds, by what it adds to zeros."""
    tables_of(made, OUTCOME).choose(torch.arange(3))
    return made(torch.zeros(3, 4, dtype=table_of(made).table.dtype))


def backward(made):
    """A loss with another gradient for each outcome."""
    tables_of(made, OUTCOME).choose(OUTCOMES)
    embedding = torch.arange(16.0).view(4, 4).to(table_of(made).table.dtype) / 7 - 1
    (made(embedding).float() - torch.tensor([0.0, -1.0, 1.0, 2.0])[:, None]).square().sum().backward()


def trained(gain, dtype=torch.float32, steps=1):
    made = network(gain, dtype)
    optimizer = torch.optim.AdamW(made.parameters(), RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        backward(made)
        optimizer.step()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_gain_times_the_parameter_to_the_bit_and_have_its_gradient(dtype):
    plain, gained = network(1.0, dtype), network(GAIN, dtype)
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[NONE] = 0
    with torch.no_grad():
        table_of(plain).table.copy_(values)
        table_of(gained).table.copy_(values / GAIN)
    assert torch.equal(rows(plain), values) and torch.equal(rows(gained), values)
    backward(plain), backward(gained)
    gradients = [table_of(made).table.grad for made in (plain, gained)]
    assert torch.equal(*gradients) and gradients[0].any(), "the norm that a host clips does not know the gain"
    assert not gradients[1][NONE].any(), "the row of no outcome stays zero"


def test_a_gain_of_1_leaves_no_trace(monkeypatch):
    made = network(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "detach", None)
        backward(made)
    assert made.state_dict(keep_vars=True)[f"{OUTCOME}.fake_score.0.table"] is table_of(made).table


def test_a_step_of_adam_moves_the_rows_by_gain_times_the_rate():
    for gain in (1.0, GAIN):
        moved = rows(trained(gain))[1:]
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, gain * RATE), rtol=1e-3, atol=0)


def test_rows_in_bf16_go_on_moving():
    """A step of 1e-5 is rounded away at a row of .1, whose neighbours in bf16 are .0005 apart."""
    for gain, moves in ((1.0, False), (GAIN, True)):
        made = network(gain, torch.bfloat16)
        with torch.no_grad():
            table_of(made).table[1:] = 0.1 / gain
        before = rows(made)
        optimizer = torch.optim.AdamW(made.parameters(), RATE, weight_decay=0)
        for _ in range(8):
            optimizer.zero_grad()
            backward(made)
            optimizer.step()
        moved = (rows(made).float() - before.float()).abs()[1:]
        assert (moved > 4 * gain * RATE).all() if moves else not moved.any()


def test_a_table_of_rungs_has_no_gain():
    made = network(rungs=4)
    tables_of(made, RUNGS).choose(2), tables_of(made, OUTCOME).choose(NONE)
    with torch.no_grad():
        table_of(made, RUNGS).table[2] = 1.0
    assert torch.equal(made(torch.zeros(1, 4)), torch.ones(1, 4))
    assert torch.equal(made.state_dict()[f"{RUNGS}.fake_score.0.table"], table_of(made, RUNGS).table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_has_the_rows_so_that_another_gain_goes_on_with_them(dtype):
    first = trained(GAIN, dtype, 3)
    before, file = rows(first), io.BytesIO()
    torch.save(first.state_dict(), file)
    for gain in (GAIN, 1.0, 8.0):  # 1: also what a checkpoint from before there was a gain means
        file.seek(0)
        again = network(gain, dtype)
        again.load_state_dict(torch.load(file))
        assert torch.equal(rows(again), before) and before.any()
        assert torch.equal(again.state_dict()[f"{OUTCOME}.fake_score.0.table"], before)
        assert torch.equal(table_of(again).table * gain, before)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("full", [False, True], ids=["sharded", "full"])
def test_checkpoints_of_sharded_tables_have_the_rows_too(one_process, tmp_path, full):
    """As FastVideo, FastGen and LightX2V write and read them: in place, through DCP's own functions."""
    options = StateDictOptions(full_state_dict=full, cpu_offload=full)
    mesh = dist.init_device_mesh("cpu", (1,))

    def sharded(gain):
        made = network(gain)
        fully_shard(table_of(made), mesh=mesh)
        return fully_shard(made, mesh=mesh)

    first = sharded(GAIN)
    optimizer = torch.optim.AdamW(first.parameters(), RATE)
    backward(first)
    optimizer.step()
    before = rows(first)
    dcp.save(get_model_state_dict(first, options=options), checkpoint_id=tmp_path / "saved")
    for gain in (GAIN, 1.0, 8.0):
        again = sharded(gain)
        state = get_model_state_dict(again, options=options)
        dcp.load(state, checkpoint_id=tmp_path / "saved")
        set_model_state_dict(again, state, options=options)
        assert torch.equal(rows(again), before) and before[1:].all()
