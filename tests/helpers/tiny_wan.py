"""A Wan pipeline that trains in a second: fixtures for runs in one process and in several.

conftest.py imports this file before it has set the environment, so the package is imported inside the functions only.
"""

import pytest


def train_here(arguments, output, resume=None):
    """The run of a command line ``train ...`` in this process, nothing sharded."""
    from amd_plugin import get_plugin_manager, recipe
    from amd_plugin.host import run

    plugins, settings = get_plugin_manager(), [a.removeprefix("--set=") for a in arguments if a.startswith("--set=")]
    run.train(recipe.load(arguments[1], plugins, settings, arguments[3]), plugins, output, resume)
    return output


@pytest.fixture(scope="session")
def alone(wan, tmp_path_factory):
    """The folder of a run in one process, nothing sharded."""
    return train_here(wan, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="session")
def wan(pipeline_folder, tmp_path_factory):
    """``train wan21_1_3b_4step`` on a tiny pipeline: three student updates, no reward, four samples per update."""
    from tests.helpers.pipelines import PROMPTS

    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    small = (
        f"model.path={pipeline_folder('wan')}", "model.dtype=fp32", f"data.source={prompts}", "model.pixels=[16, 16]",
        "model.frames=5", "model.text_length=8", "model.lora.target_modules=[to_q, to_v]", "model.lora.rank=4", "rewards=[]",
        "distributed.mixed_precision='no'", "distributed.device=cpu", "distributed.timeout=60", "train.max_steps=3",
        "train.batch_size=4", "train.group_size=2", "train.accumulation=1", "train.fake_updates=1", "train.log_every=1",
        "train.trackers=[]", "train.student_lr=1e-3", "train.fake_lr=1e-3", "train.checkpoint_every=1", "train.keep_checkpoints=9",
        "evaluate.samples=10", "evaluate.batch_size=5", "data.per_prompt=2",
    )  # fmt: skip
    return ["train", "wan21_1_3b_4step", "--objective", "dmd", *(f"--set={setting}" for setting in small)]
