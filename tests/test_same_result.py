"""The same command with the same seed gives the same result, whatever ran before and on however many threads."""

import json

import torch

from amd_plugin.config import DataConfig
from amd_plugin.tasks import task_of
from amd_plugin.threads import one_thread
from tests.helpers.commands import ends_of
from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY


def test_train_and_compare_agree_in_either_order_with_one_thread_and_with_two(tmp_path):
    # A batch that torch would share out over two threads, so that a forgotten thread count shows.
    large = [*TINY, "--set=train.batch_size=1024", "--set=train.group_size=8", "--set=model.width=64"]
    train = ("train", "modes2d", *large, "--set=train.seed=1", "--output=run")
    compare = ("compare", "modes2d", *large, "--objectives=amd", "--seeds=0,1", "--workers=1", "--output=comparison")
    orders = {"train first, 1 thread": (1, train, compare), "compare first, 2 threads": (2, compare, train)}
    kept, results = [], []
    for name, (threads, *commands) in orders.items():
        folder = tmp_path / name
        folder.mkdir()
        variables = {"AMD_PLUGIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": str(threads)}
        for code, printed, complaint in ends_of(*commands, cwd=folder, **variables):
            assert code == 0, printed + complaint
        files = sorted((folder / "cache").rglob("*.safetensors"))
        kept.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
        own = json.loads((folder / "run" / "evaluation.json").read_text())
        arm = json.loads((folder / "comparison" / "arms" / "amd" / "seed-1" / "evaluation.json").read_text())
        assert own == arm, "a run is the same alone and in a comparison"
        results.append((own, json.loads((folder / "comparison" / "compare.json").read_text())["teacher"]))
    assert kept[0].keys() == kept[1].keys() and len([name for name in kept[0] if "classifier" in name]) == 2
    assert all(kept[0][name] == kept[1][name] for name in kept[0]), "what is kept is the same to the bit"
    assert results[0] == results[1]


def test_each_seed_has_its_own_reward_and_all_have_one_judge():
    tasks = [task_of(DataConfig(task="digits"), seed) for seed in (0, 1, 0)]
    first, other, again = (task.classifier().state_dict() for task in tasks)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    judges = [task.judge().features.state_dict() for task in tasks[:2]]
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in judges[0])


def test_one_thread_is_for_the_block_only():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        with one_thread(False):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
