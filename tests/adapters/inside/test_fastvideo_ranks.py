"""FastVideo's own trainer on two ranks: real processes, gloo, each role sharded over both.

A forward, a gradient or a gather too many on one rank would wait for ever; every run has a time limit.
"""

import json

import pytest
import torch
from rank_fastvideo import PROMPTS, REWARDS
from ranks import two_ranks
from tiny_fastvideo import write_data

from amd_plugin import AMDObjective
from amd_plugin.objectives.reward_statistics import group_ids

CAPTIONS = [f"prompt {i}" for i in range(8)]
FAILS = {"0": [3, 4, 6], "1": [5, 6]}  # iterations; only 1, 2, 7 and 8 have all their rewards


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The record of each rank: by kind of rollout, and by `group_size`."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "data", 5, CAPTIONS, len(CAPTIONS))
    return two_ranks("rank_fastvideo", folder, json.dumps(FAILS))


@pytest.fixture(params=range(3), ids=["stock rollout", "fast_rollout", "harvest"])
def ranks(request, trained):
    return request.param, [rank["kinds"][request.param] for rank in trained]


def test_every_rank_makes_the_same_calls_whatever_its_rewards_did(ranks):
    _, (first, second) = ranks
    assert first["collectives"] == second["collectives"] and first["forwards"] == second["forwards"]
    # What is compared is not nothing: gathers of sharded weights, their gradients, and of rewards.
    assert all({"all_gather", "all_gather_single"} <= set(step) for step in first["collectives"])
    assert first["student"] == second["student"]


def test_the_exit_rung_is_agreed_where_that_saves_forwards(ranks):
    kind, (first, second) = ranks
    if kind == 2:
        assert first["rungs"] == second["rungs"] and len({step[-1] for step in first["rungs"]}) > 1
        assert [step["student"] for step in first["forwards"]] == [4, 1] * 4
    elif kind == 1:
        assert first["rungs"] == second["rungs"] and len({step[0] for step in first["rungs"]}) > 1
        depth = {1000: 1, 750: 2, 500: 3, 250: 4}
        assert [step["student"] for step in first["forwards"]] == [depth[step[0]] for step in first["rungs"]]
    else:
        assert first["rungs"] != second["rungs"], "the host draws one on each rank, and rolls out all steps"
        assert [step["student"] for step in first["forwards"]] == [4, 8] * 4


def test_the_critics_tables_are_sharded_and_trained_as_the_rest_of_it(ranks):
    kind, (first, second) = ranks
    assert first["tables"] == second["tables"] and bool(first["tables"]) is (kind > 0)
    assert all(any(map(any, table)) for table in first["tables"])


def test_every_rank_remembers_the_failures_of_all(ranks):
    kind, (first, second) = ranks
    assert first["failures"] == second["failures"] and bool(first["failures"]) is (kind > 0)


def test_groups_span_ranks_and_failed_rewards_are_advantage_0(ranks):
    _, both = ranks
    groups = group_ids([prompt for prompts in PROMPTS for prompt in prompts], 4)
    expected = AMDObjective().advantage(torch.tensor([*REWARDS[0], *REWARDS[1]]), groups).view(2, 2)
    assert expected[0, 0] < 0 < expected[1, 1], "a group's members are on different ranks"
    for rank, record in enumerate(both):
        for iteration, scores in enumerate(record["scores"], start=1):
            failed = any(iteration in iterations for iterations in FAILS.values())
            assert scores
            for advantage, weight in scores:
                torch.testing.assert_close(torch.tensor(advantage), torch.zeros(2) if failed else expected[rank])
                assert (weight == [1, 1]) is failed


def test_all_ranks_log_the_same(ranks):
    _, (first, second) = ranks
    assert first["reward"] == second["reward"]
    assert [share for _, share in first["reward"]] == [0, 0, 0.5, 0.5, 0.5, 1, 0, 0]


def joined(trained, kind):
    """The prompts of all ranks and their advantages, of each iteration."""
    both = [rank[kind] for rank in trained]
    assert [advantages for _, advantages in both[0]] == [advantages for _, advantages in both[1]]
    return [(first + second, advantages) for (first, advantages), (second, _) in zip(*both, strict=True)]


def test_fastvideos_own_order_keeps_equal_prompts_apart(trained):
    steps = joined(trained, "1 of 1")
    assert len(steps) == 10 and all(len(set(prompts)) == 2 and advantages == [0, 0] for prompts, advantages in steps)
    assert sorted(prompt for prompts, _ in steps[:4] for prompt in prompts) == CAPTIONS, "an epoch"


@pytest.mark.parametrize(("size", "batch"), [(2, 1), (2, 2), (4, 2)])
def test_group_size_gives_a_row_to_neighbours_over_ranks_in_fastvideos_order(trained, size, batch):
    own = [prompt for prompts, _ in joined(trained, "1 of 1") for prompt in prompts]
    steps = joined(trained, f"{size} of {batch}")
    assert [prompt for prompts, _ in steps for prompt in prompts] == [p for p in own for _ in range(size)][: 20 * batch]
    for _, advantages in steps:
        if size == 2 * batch:  # half of a group on the rank that the reward prefers
            assert all(first < 0 < second for first, second in zip(advantages[:batch], advantages[batch:], strict=True))
        else:
            assert advantages == [0] * 4, "a group lies on one rank, whose rewards are equal"


def test_a_resumed_run_goes_on_with_the_next_group(trained):
    assert joined(trained, "resumed") == joined(trained, "2 of 1")[5:]
