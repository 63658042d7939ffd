"""FastVideo's own Wan example, only its method changed: LoRA, EMA, validation and checkpoints are the stock host's to the bit."""

import json
import os
import socket

import fastvideo.train.trainer
import pytest
import torch
import yaml
from fastvideo.train.entrypoint.train import run_training_from_config
from tiny_fastvideo import example, on_cpu, shrunk, write_data, write_model
from toy_fastvideo import OURS, STATE, STOCK, Log, Probe

from amd_plugin.adapters.fastvideo import AMDMethod


@pytest.fixture(scope="module", autouse=True)
def one_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    on_cpu()
    fastvideo.train.trainer.build_tracker = lambda *args, **kwargs: Log()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    write_data(folder / "data", write_model(folder / "model"))
    return folder / "model", folder / "data"


class Left:
    """What a run left behind: all that its user could look at."""

    def __init__(self, output):
        method, roles = Probe.method, (Probe.method.student, Probe.method.critic)
        self.tensors = [whole(p) for role in roles for p in role.transformer.parameters()]
        self.tensors += [whole(shadow) for _, shadow in sorted(Probe.callbacks.state_dict()["ema"]["student_ema"].items())]
        self.tensors += [gradient for step in Probe.gradients for gradient in map(whole, step)]
        self.tensors += [method.cuda_generator.get_state(), torch.get_rng_state()]
        # The tracker's lines of videos hold objects; their files are compared.
        self.lines = [{k: v for k, v in line.items() if isinstance(v, float) and k != "step_time_sec"} for line in Log.lines]
        self.files = {path.name: path.read_bytes() for path in sorted(output.glob("*.mp4"))}
        self.saved = sorted(path.name for path in output.glob("checkpoint-*"))


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def run(files, output, method=OURS, steps=10, every=5, amd=None, lora=False, resume="", callbacks=None):
    """FastVideo's example, smaller, with `method` in place of its own; `lora` of rank 4 on the student."""
    Log.lines = []
    written = shrunk(example(), *files, output, steps, every)
    written["method"]["_target_"] = method
    if amd is not None:
        written["method"]["amd"] = amd
    if lora:
        written["models"]["student"]["lora"] = {"enable": True, "rank": 4}
    written["training"]["checkpoint"]["resume_from_checkpoint"] = resume
    written["callbacks"] |= callbacks or {}
    output.mkdir(exist_ok=True)
    path = output / "run.yaml"
    path.write_text(yaml.safe_dump(written))
    run_training_from_config(str(path))
    return Left(output)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("amd", [None, {"strength": 0, "sharpening": 0, "reward": {"name": "random"}}], ids=["unset", "zero"])
def test_only_the_method_changed_is_the_host_to_the_bit(files, stocks, tmp_path, lora, amd):
    stock, ours = stocks[lora], run(files, tmp_path / "ours", amd=amd, lora=lora)
    assert type(Probe.method) is AMDMethod
    assert len(ours.tensors) == len(stock.tensors) and all(map(torch.equal, ours.tensors, stock.tensors))
    assert ours.lines == stock.lines and ours.files == stock.files and ours.saved == stock.saved
    # What is compared is there: ten logged steps, two checkpoints, videos before training and twice after.
    assert len([line for line in ours.lines if "total_loss" in line]) == 10 and ours.saved == ["checkpoint-10", "checkpoint-5"]
    assert len(ours.files) == 3 and all(ours.files.values())


@pytest.fixture(scope="module")
def stocks(files, tmp_path_factory):
    return {lora: run(files, tmp_path_factory.mktemp("stock"), STOCK, lora=lora) for lora in (False, True)}


def test_rewards_see_what_the_hosts_autoencoder_decodes_and_a_resumed_run_equals_a_straight_one(files, stocks, tmp_path):
    amd = {"reward": {"name": "random"}, "fast_rollout": True, "held_out": {"name": "hackable"}, "rung_conditioning": True}
    straight = run(files, tmp_path / "a", amd=amd, callbacks=STATE)
    judged = [line for line in straight.lines if "hacking_alarm" in line]
    assert len(judged) == 3 and all("held_out/hackable" in line for line in judged), "at 0, 5 and 10; of one sample"
    assert Probe.method.validation.state_dict()[-1]["step"] == 10
    assert len(Probe.method._conditions.parameters()[0]) == 4, "on FastVideo's own Wan"
    state, resumed_from = Probe.method.objective.state_dict(), tmp_path / "a" / "checkpoint-5"
    assert not all(map(torch.equal, straight.tensors, stocks[False].tensors))
    resumed = run(files, tmp_path / "b", amd=amd, callbacks=STATE, resume=str(resumed_from))
    steps = [line for line in straight.lines if "total_loss" in line]
    assert {"amd/reward", "amd/failed_rewards"} <= set(steps[-1]) and steps[-1]["amd/failed_rewards"] == 0
    # As text, in which a number that is NaN, for lack of samples at a noise level, equals itself.
    assert json.dumps([line for line in resumed.lines if "total_loss" in line]) == json.dumps(steps[5:])
    assert Probe.method.objective.state_dict() == state and sum(state["rewards"]["updates"].values()) == 10
    last = [whole(p) for p in Probe.method.student.transformer.parameters()]
    assert all(map(torch.equal, last, straight.tensors))
