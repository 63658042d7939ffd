"""A set of rewards: what they may answer, where they run, and what happens to those that do not answer."""

import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from amd_plugin.config import DataConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.rewards.protocol import LOGITS, to_pil
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.tasks import TASKS
from tests.helpers import sample_rewards

MEDIA = torch.arange(8.0).reshape(4, 2)
PROMPTS = ["a", "a", "b", "b"]


@pytest.fixture
def rewards(plugins):
    """``rewards({"name": ...}, name=factory)``: a set of them, closed after the test."""
    made = []

    def make(*entries, **factories):
        class Plugin:
            @hookimpl
            def distill_rewards(self):
                return {**sample_rewards.FACTORIES, **factories}

        if "first" not in plugins.rewards():
            plugins.register(Plugin())
        configs = [RewardConfig(**entry) for entry in entries]
        made.append(RewardSet(configs, plugins, TASKS["modes2d"](), DataConfig(task="modes2d")))
        return made[-1]

    yield make
    for each in made:
        each.close()


ANSWERS = {
    "a list with None": lambda media, prompts: [1.0, None, 2, 3.0],
    "an array": lambda media, prompts: np.array([1.0, np.nan, 2.0, 3.0]),
    "integers": lambda media, prompts: torch.tensor([1, 2, 3, 4]),
    "float64": lambda media, prompts: torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
    "tensors in a list": lambda media, prompts: [row.sum() for row in media],
    "a graph": lambda media, prompts: torch.ones(4, requires_grad=True) * 2,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_reward_may_return(rewards, answer):
    scores = rewards({"name": "odd"}, odd=lambda: ANSWERS[answer])(MEDIA, PROMPTS)
    values = scores.each["odd"]
    assert values.dtype == torch.float32 and values.shape == (4,) and not values.requires_grad
    assert not scores.causes and torch.equal(values.isnan(), scores.total.isnan())


WRONG = {
    "too few": (lambda media, prompts: [1.0], "one value per sample"),
    "a column": (lambda media, prompts: torch.zeros(4, 1), r"shape \(4,\), got \(4, 1\)"),
    "a number": (lambda media, prompts: 1.0, "a tensor or a list of numbers, got float"),
    "words": (lambda media, prompts: ["good"] * 4, "must return numbers, got 'good'"),
    "one word": (lambda media, prompts: "good", "got str"),
    "a mapping": (lambda media, prompts: {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, "got dict"),
    "complex": (lambda media, prompts: torch.zeros(4, dtype=torch.complex64), "real numbers"),
    "no device": (lambda media, prompts: torch.zeros(4, device="meta"), "NotImplementedError"),
    "an exit": (lambda media, prompts: sys.exit(3), "SystemExit: 3"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("on_error", ["raise", "neutral"])
def test_what_it_may_not(rewards, case, on_error):
    reward, said = WRONG[case]
    scores = rewards({"name": "odd", "on_error": on_error}, odd=lambda: reward)(MEDIA, PROMPTS)
    assert scores.each["odd"].isnan().all() and scores.total.isnan().all()
    assert re.search(said, scores.causes["odd"]), scores.causes


def test_a_reward_that_works_in_place_changes_nothing_for_the_next(rewards):
    media = MEDIA.clone()
    twice = rewards({"name": "rude"}, {"name": "first"}, rude=lambda: lambda media, prompts: media.zero_()[:, 0])
    assert twice(media, PROMPTS).each["first"].tolist() == [0, 2, 4, 6]
    assert torch.equal(media, MEDIA)


def test_the_media_a_reward_asks_for(rewards):
    def likes(kind):
        def reward(media, prompts):
            return [media[0].size[0] if kind == "pil" else media.dim()] * len(media)

        reward.media = kind
        return lambda: reward

    names = {f"likes_{kind}": likes(kind) for kind in ("pil", "image", "video")}
    images = rewards(*({"name": name} for name in names), **names)(torch.rand(2, 3, 4, 6), ["a", "b"])
    assert images.each["likes_pil"].tolist() == [6, 6] and images.each["likes_image"].tolist() == [4, 4]
    assert "takes media of kind 'video'" in images.causes["likes_video"]
    videos = to_pil(torch.rand(2, 1, 5, 4, 6))
    assert len(videos) == 2 and len(videos[0]) == 5 and videos[0][0].mode == "L"


def test_weights_and_names(rewards):
    entries = (
        {"name": "first", "weight": 2.0},
        {"name": "first", "scale": 3.0, "weight": -1.0},
        {"name": "first", "weight": 0.0},
    )
    scores = rewards(*entries)(MEDIA, PROMPTS)
    assert list(scores.each) == ["first", "first_1", "first_2"]
    torch.testing.assert_close(scores.total, -MEDIA[:, 0])


def test_a_reward_of_weight_nothing_is_only_watched(rewards):
    scores = rewards({"name": "first"}, {"name": "none", "weight": 0.0}, none=lambda: lambda media, prompts: [None] * 4)(
        MEDIA, PROMPTS
    )
    assert torch.equal(scores.total, MEDIA[:, 0]) and scores.each["none"].isnan().all()


def test_offloaded_weights_are_moved_and_found(rewards):
    moves = []

    class Watched(sample_rewards.Network):
        def to(self, *args, **kwargs):
            moves.append(args[0].type)
            return super().to(*args, **kwargs)

    class Holder:
        def __init__(self):
            self.network = Watched()

        def __call__(self, media, prompts):
            return self.network(media, prompts)

    class Wrapper(Holder):
        def __init__(self):
            self.inner = Holder()
            self.network = lambda media, prompts: self.inner(media, prompts)

    for factory in (Watched, Holder, Wrapper):
        moves.clear()
        assert not rewards({"name": "big", "offload": True}, big=factory)(MEDIA, PROMPTS).causes
        assert moves == ["cpu", "cpu"]
    with pytest.raises(InputError, match="offload: it holds no torch module"):
        rewards({"name": "first", "offload": True})


def test_a_device_this_machine_lacks(rewards):
    with pytest.raises(InputError, match=r"device 'cuda:\d+': this machine has \d+ CUDA devices"):
        rewards({"name": "first", "device": f"cuda:{torch.cuda.device_count()}"})


def test_an_option_of_the_rewards_own_is_not_the_hosts(rewards):
    seen = []

    def remote(timeout: float = 5.0):
        seen.append(timeout)
        return lambda media, prompts: (time.sleep(0.2), media[:, 0])[1]

    # The host would have given up on it.
    assert not rewards({"name": "remote", "timeout": 0.05}, remote=remote)(MEDIA, PROMPTS).causes
    assert seen == [0.05]


def test_a_late_answer_without_a_pool(rewards):
    slow = rewards({"name": "sleepy", "seconds": 2.5, "only": 4, "timeout": 0.7, "on_error": "neutral"})
    assert slow(MEDIA, PROMPTS).causes["sleepy"] == "TimeoutError: no answer within 0.7 s"
    assert "still busy with an earlier call" in slow(MEDIA[:2], PROMPTS[:2]).causes["sleepy"]
    time.sleep(2.0)
    assert slow(MEDIA[:2], PROMPTS[:2]).each["sleepy"].tolist() == [0, 2]


def test_a_pool_answers_like_this_process(rewards):
    here = rewards({"name": "by_label"})
    there = rewards({"name": "by_label", "pool": 1}, {"name": "process", "pool": 2})
    media, labels = torch.randn(16, 2), torch.arange(16) % 8
    one = here(media, [""] * 16, labels=labels, unused=object())
    first = there.submit(media, [""] * 16, {"labels": labels, "unused": object()})
    second = there.submit(media.bfloat16(), [""] * 16, {"labels": labels})
    two, three = there.collect(first), there.collect(second)
    assert torch.equal(one.each["by_label"], two.each["by_label"])
    assert there.overlaps and not here.overlaps
    assert not three.causes
    processes = {int(scores.each["process"][0]) for scores in (two, three)}
    assert len(processes) == 2 and os.getpid() not in processes


def test_the_unit_of_a_sum_is_the_sum_of_units(rewards):
    of = lambda *entries: rewards(*entries).unit  # noqa: E731
    assert of({"name": "in_logits"}) == of({"name": "in_logits", "pool": 1}) == 0.5
    assert of({"name": "in_logits", "weight": -2.0}, {"name": "classifier"}) == 1.0 + LOGITS
    assert of({"name": "in_logits"}, {"name": "by_label"}) == 0, "nobody knows what that one's differences mean"
    assert of({"name": "in_logits"}, {"name": "by_label", "weight": 0}) == 0.5, "it is only logged"
    assert of() == 0


@pytest.mark.parametrize("pool", [0, 1])
def test_a_reward_that_takes_the_plugins_gets_those_of_the_run(rewards, pool):
    """`video` wraps a reward that was registered by hand; a worker process has the installed plugins only."""
    entry = {"name": "video", "reward": {"name": "brightness", "scale": 2.0}, "pool": pool}

    def brightness(scale: float):
        return lambda media, prompts: (scale * media.flatten(1).mean(1)).tolist()

    if pool:
        with pytest.raises(InputError, match="unknown reward 'brightness'"):
            rewards(entry, brightness=brightness)
        return
    scores = rewards(entry, brightness=brightness)(torch.full((2, 3, 4, 8, 8), 0.25), ["a", "b"])
    assert scores.each["video"].tolist() == [0.5 - 1.0, 0.5 - 1.0], (
        "the brightness of its frames, less the penalty of no motion"
    )


def test_workers_that_hang_or_die_are_replaced(rewards):
    """What waited in the queue of the lost worker is asked again."""
    both = rewards(
        {"name": "sleepy", "seconds": 60.0, "only": 4, "timeout": 4.0, "pool": 1}, {"name": "deadly", "only": 4, "pool": 1}
    )
    bad, good = (both.submit(MEDIA[:n], PROMPTS[:n], {}) for n in (4, 2))
    lost, kept = both.collect(bad), both.collect(good)
    assert lost.causes == {
        "sleepy": "TimeoutError: no answer within 4 s",
        "deadly": "its worker process died, of too little memory or of a crash in native code",
    }
    assert not kept.causes and all(values.tolist() == [0, 2] for values in kept.each.values())
    workers = {pid for pool in both.pools.values() for pid in pool.process_ids}
    assert len(workers) == 2
    for process in multiprocessing.active_children():
        if process.pid in workers:
            process.kill()
            process.join()
    time.sleep(0.2)
    assert not both(MEDIA[:2], PROMPTS[:2]).causes


def test_what_cannot_be_built_in_a_pool_is_said_at_once(rewards):
    with pytest.raises(InputError, match="reward 'unbuildable' could not be built: OSError: no weights here"):
        rewards({"name": "unbuildable", "pool": 1}, local=lambda: lambda media, prompts: media[:, 0])
    with pytest.raises(InputError, match="A pool needs a reward that another process can import"):
        rewards({"name": "local", "pool": 1})


WRONG_CALLS = {
    "media alone": (lambda: lambda media: media.sum(1), r"its signature is \(media\) \(too many positional arguments\)"),
    "by name alone": (lambda: lambda *, media, prompts: media.sum(1), "must be callable as reward"),
    "no callable": (lambda: torch.ones(3).tolist(), "is not a callable object"),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_reward_that_cannot_be_called_is_refused_when_it_is_built(rewards, call):
    factory, message = WRONG_CALLS[call]
    with pytest.raises(InputError, match=message):
        rewards({"name": "local"}, local=factory)


def images_only(images):
    return images.flatten(1).sum(1)


class ForwardIsAHelper:
    def forward(self, images):
        return images_only(images)

    def __call__(self, media, prompts):
        return self.forward(media)


class ModuleWithACallOfItsOwn(torch.nn.Module):
    def forward(self, images):
        return images_only(images)

    def __call__(self, media, prompts):
        return super().__call__(media)


def wrapper():
    return functools.wraps(images_only)(lambda media, prompts, **columns: images_only(media))


def hooked():
    module = torch.nn.Flatten(0)
    module.forward = images_only
    module.register_forward_pre_hook(lambda module, given: given[:1])
    return module


@pytest.mark.parametrize("factory", [ForwardIsAHelper, ModuleWithACallOfItsOwn, wrapper, hooked])
def test_a_call_that_is_not_what_a_signature_says_is_left_to_the_first_batch(rewards, factory):
    assert not rewards({"name": "local"}, local=factory)(MEDIA, PROMPTS).causes


def test_a_required_column_is_no_wrong_signature(rewards):
    both = rewards({"name": "local"}, local=lambda: lambda media, prompts, labels, *, scale: labels.float() * scale)
    assert not both(MEDIA, PROMPTS, labels=torch.arange(4), scale=2.0).causes


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import time, torch\n"
        "from amd_plugin import get_plugin_manager\n"
        "from amd_plugin.config import DataConfig, RewardConfig\n"
        "from amd_plugin.rewards.reward_set import RewardSet\n"
        "if __name__ == '__main__':\n"
        "    rewards = RewardSet([RewardConfig(name='random', pool=1)], get_plugin_manager(), None)\n"
        "    for pid in rewards.pools['random'].process_ids:\n"
        "        print(pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    os.kill(worker, signal.SIGINT)  # Ctrl-C reaches the whole group: the training process decides
    time.sleep(0.3)
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if "Z" in (Path(f"/proc/{worker}/stat").read_text().split()[2:3]):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent by ten seconds")
