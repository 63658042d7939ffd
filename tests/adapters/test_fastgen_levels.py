"""Places on a ladder of noise levels; the ladder of EDM is made here as Karras et al. (2206.00364) give it."""

import pytest
import torch

from amd_plugin.adapters.fastgen_levels import level, position

LADDER = (torch.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), 1000, dtype=torch.float64)) ** 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_place_is_that_of_edms_steps_and_back(dtype):
    t = LADDER[[0, 250, 500, 999]].to(dtype)
    torch.testing.assert_close(position(t, LADDER), torch.tensor([0, 250, 500, 999], dtype=dtype) / 999)
    places = torch.rand(64, dtype=dtype)
    assert position(level(places, LADDER), LADDER).dtype == dtype
    torch.testing.assert_close(position(level(places, LADDER), LADDER), places, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        level(torch.tensor([0, 0.5, 1], dtype=dtype), LADDER), torch.tensor([0.002, 2.515, 80], dtype=dtype), rtol=1e-3, atol=0
    )


def test_what_lies_beyond_is_the_end():
    assert position(torch.tensor([0.0, 81.0]), LADDER).tolist() == [0, 1]
