"""Tables in a host's fake score, and checkpoints that have others."""

import pytest
import torch
from torch import nn

from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.errors import InputError


class SongUNet(nn.Module):
    """A network of a class whose place for the time is known."""

    def __init__(self):
        super().__init__()
        self.map_layer1 = nn.Linear(4, 4)

    def forward(self, x):
        return self.map_layer1(x)


def network(plugins, rungs=0, outcomes=False):
    made = SongUNet()
    FakeScoreConditions(rungs, outcomes, plugins, "method.amd").add_to(made)
    return made


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
