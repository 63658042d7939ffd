"""A real ZeRO-3 teacher inside `AMDPipeline`: two processes, gloo, placed by the hook `distill_prepare_frozen`."""

import torch
from ranks import two_ranks


def test_a_sharded_teacher_trains_what_a_whole_one_does():
    for done in two_ranks("rank_modelopt"):
        shared, alone = done["zero3"], done["none"]
        held, size, left = shared["held"]
        assert alone["held"] == [size, size, size]
        assert size / 2 <= held < 0.52 * size and left == held, "half on each rank, before and after; some padding"
        torch.testing.assert_close(torch.tensor(shared["losses"]), torch.tensor(alone["losses"]), rtol=1e-4, atol=1e-6)
        for a, b in zip(shared["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-6)
