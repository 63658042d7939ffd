"""From rewards to advantages, over two real processes."""

import subprocess
import sys

import pytest
import torch

from amd_plugin import AMDObjective
from amd_plugin.adapters.steering import Steering, group_ids, make_reward
from amd_plugin.errors import InputError

PROMPTS = ["cat", "dog", "cat", "dog"]
X0 = torch.tensor([1.0, 5.0, 3.0, 9.0]).reshape(4, 1)

RANK = """
import sys, torch, torch.distributed as dist
from amd_plugin import AMDObjective
from amd_plugin.adapters.steering import Steering, group_ids
rank, store, fails = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "fails"
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
def reward(media, prompts):
    if fails and rank == 0:
        raise ConnectionError("no answer")
    return media[:, 0]
mine = slice(2 * rank, 2 * rank + 2)
x0 = torch.tensor([1.0, 5.0, 3.0, 9.0]).reshape(4, 1)[mine]
prompts = ["cat", "dog", "cat", "dog"][mine]
steering = Steering(AMDObjective(sharpening=1.0), reward)
for _ in range(2):
    advantage, weight = steering(x0, group_ids(prompts, 2), prompts)
print(advantage.tolist(), weight.tolist(), steering.metrics["failed_rewards"].item(), sep=";")
dist.destroy_process_group()
"""


def two_ranks(tmp_path, how):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / how), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    answers = [rank.communicate(timeout=120) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), answers
    columns = zip(*(out.strip().splitlines()[-1].split(";") for out, _ in answers), strict=True)
    advantage, weight, failed = (
        [value for part in column for value in torch.tensor(eval(part)).reshape(-1)] for column in columns
    )
    return torch.stack(advantage), torch.stack(weight), torch.stack(failed)


def test_groups_span_ranks(tmp_path):
    advantage, weight, failed = two_ranks(tmp_path, "works")
    steering = Steering(AMDObjective(sharpening=1.0), lambda media, prompts: media[:, 0])
    for _ in range(2):
        alone = steering(X0, group_ids(PROMPTS, 4), PROMPTS)
    torch.testing.assert_close(advantage, alone[0])
    torch.testing.assert_close(weight, alone[1])
    assert failed.tolist() == [0, 0] and advantage[0] < 0 < advantage[2]


def test_ranks_whose_rewards_fail_do_not_hang_the_others(tmp_path):
    advantage, weight, failed = two_ranks(tmp_path, "fails")
    assert advantage.tolist() == [0, 0, 0, 0] and weight.tolist() == [1, 1, 1, 1] and failed.tolist() == [0.5, 0.5]


def test_groups_of_conditions_of_any_type():
    for dtype in (torch.float32, torch.bfloat16, torch.long):
        ids = group_ids(torch.tensor([[1, 2], [3, 4], [1, 2]]).to(dtype), 3)
        assert ids[0] == ids[2] != ids[1]
    assert group_ids(None, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "spec", [3, [], [3], {"weight": 1.0}, {"name": "random", "on_error": "raise"}, {"name": "nope"}, "nope"]
)
def test_rewards_that_are_none(spec):
    with pytest.raises(InputError, match="reward"):
        make_reward(spec)


def test_a_reward_by_name_and_a_sum_of_two():
    media = torch.rand(4, 3, 8, 8)
    assert make_reward("random")(media, PROMPTS).shape == (4,)
    one, two = {"name": "random"}, [{"name": "random", "weight": 0.5}, {"name": "random", "weight": 0.5}]
    assert make_reward(two)(media, PROMPTS).shape == make_reward(one)(media, PROMPTS).shape
