"""Tables in a host's fake score, and checkpoints that have others."""

import pytest
import torch
from torch import nn

from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.errors import InputError
from amd_plugin.models.step_conditioning import OUTCOME, RUNGS


class SongUNet(nn.Module):
    """A network of a class whose place for the time is known."""

    def __init__(self):
        super().__init__()
        self.map_layer1 = nn.Linear(4, 4)

    def forward(self, x):
        return self.map_layer1(x)


def network(plugins, rungs=0, outcomes=False, learning_rate=None, **options):
    made = SongUNet()
    FakeScoreConditions(rungs, outcomes, plugins, "method.amd", **options).add_to(made, learning_rate)
    return made


def gain_of(made, part=OUTCOME):
    """By how much the rows in a state are larger than the parameter."""
    parameter = made.get_parameter(f"{part}.fake_score.0.table")
    with torch.no_grad():
        parameter.fill_(1)
    (gain,) = made.state_dict()[f"{part}.fake_score.0.table"].unique().tolist()
    return gain


def test_a_table_of_one_rung_is_refused(plugins):
    with pytest.raises(InputError, match=r"method\.amd\.rung_conditioning: needs a student of several steps"):
        FakeScoreConditions(1, False, plugins, "method.amd")


@pytest.mark.parametrize("tables", [(0, False), (4, False), (0, True), (3, True)], ids=str)
def test_a_run_resumes_with_the_tables_it_was_started_with(plugins, tables):
    whole = nn.ModuleDict({"fake_score": network(plugins, *tables)})  # a host may load it as a part
    nn.ModuleDict({"fake_score": network(plugins, *tables)}).load_state_dict(whole.state_dict())
    assert torch.isfinite(whole["fake_score"](torch.zeros(2, 4))).all()


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        ((0, False), (0, True), r"advantage_guidance: the checkpoint's fake score has a table of 0 rows, and this run's one of 3"),
        ((0, True), (0, False), r"advantage_guidance: the checkpoint's fake score has a table of 3 rows, and this run's one of 0"),
        ((4, True), (3, True), r"rung_conditioning: the checkpoint's fake score has a table of 4 rows, and this run's one of 3"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [True, False])
def test_a_run_with_other_tables_is_refused_by_the_options_name(plugins, saved, own, message, strict):
    """FastGen loads without `strict`, and then its optimizer fails on sizes of parameter groups."""
    state = network(plugins, *saved).state_dict()
    with pytest.raises(InputError, match=rf"method\.amd\.{message}.*Resume with the options of the run"):
        network(plugins, *own).load_state_dict(state, strict=strict)


@pytest.mark.parametrize(
    ("learning_rate", "options", "gain", "of_rungs"),
    [
        (1e-5, {}, 512, 32),  # of the powers of two nearest to 500, and to 40
        ("8e-6", {}, 512, 64),  # of 625, and of 50; hosts take a rate's text too
        (1e-5, {"outcome_lr": 1e-4}, 8, 32),
        (5e-3, {}, 1, 1),
        (2e-2, {}, 1, 1),  # a table never learns more slowly than the rest
        *[(unknown, {}, 1, 1) for unknown in (None, 0, -1e-5, "", "auto", [1e-5], float("nan"), float("inf"))],
        (5e-324, {"outcome_lr": 1e300}, 2**32, 2**32),
    ],
    ids=str,
)  # fmt: skip
def test_tables_learn_at_rates_of_their_own(plugins, learning_rate, options, gain, of_rungs):
    made = network(plugins, 4, True, learning_rate, **options)
    assert gain_of(made) == gain and gain_of(made, RUNGS) == of_rungs


def test_in_the_dtype_of_the_host_a_table_learns_at_its_own_rate(plugins):
    made = SongUNet().bfloat16()
    conditions = FakeScoreConditions(0, True, plugins)
    conditions.add_to(made, 1e-5)
    optimizer = torch.optim.AdamW(made.parameters(), 1e-5)
    with torch.no_grad():
        conditions.parameters()[0][1:] = 0.1 / 512
    before = made.state_dict()[f"{OUTCOME}.fake_score.0.table"]
    for _ in range(8):
        conditions.choose(None, torch.arange(3))
        made(torch.ones(3, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    moved = (made.state_dict()[f"{OUTCOME}.fake_score.0.table"].float() - before.float()).abs()
    assert (moved[1:] > 0.02).all() and not moved[0].any()


def test_a_checkpoint_of_another_rate_has_the_same_rows(plugins):
    first = network(plugins, outcomes=True, learning_rate=1e-5)
    with torch.no_grad():
        first.get_parameter(f"{OUTCOME}.fake_score.0.table")[1:] = torch.rand(2, 4)
    saved = first.state_dict()
    for learning_rate in (1e-3, None):
        again = network(plugins, outcomes=True, learning_rate=learning_rate)
        again.load_state_dict(saved)
        assert all(torch.equal(saved[name], value) for name, value in again.state_dict().items())
