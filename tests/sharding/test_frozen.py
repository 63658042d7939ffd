"""A sharded teacher is the whole one in 1 / processes of the memory: real DeepSpeed, real processes, gloo."""

import json
import math
import sys

import pytest
from transformers import UMT5EncoderModel

from tests.helpers.processes import ROOT, forked, run

SCRIPT = ROOT / "tests" / "sharding" / "frozen_checks.py"


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda count: f"{count}-processes")
def ranks(request, tmp_path_factory, pipeline_folder):
    """(number of processes, what each of them saw, the pipeline's folder)."""
    count, out, folder = request.param, tmp_path_factory.mktemp("ranks"), pipeline_folder("wan")
    launcher = forked(count) if count > 1 else [sys.executable]
    code, printed = run([*launcher, SCRIPT, folder, out], cwd=out)
    assert code == 0, printed
    return count, [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(count)], folder


def test_every_process_holds_its_share_of_every_parameter(ranks):
    count, seen, _ = ranks
    for rank in seen:
        for elements in rank["elements"].values():
            for name, (shape, mine, gathered) in elements.items():
                assert mine == math.ceil(math.prod(shape) / count), name
                assert gathered == 0, name
            assert sum(math.prod(shape) for shape, *_ in elements.values()) == rank["whole"]


def test_nothing_stays_gathered_between_calls(ranks):
    count, seen, _ = ranks
    for rank in seen:
        padding = len(rank["elements"]["plain"])
        for moment, held in rank["held"].items():
            assert held <= rank["whole"] / count + padding, moment


def test_outputs_and_gradients_are_those_of_the_whole_teacher(ranks):
    _, seen, _ = ranks
    for rank in seen:
        for what, gap in rank["gap"].items():
            assert gap <= (1e-6 if "joined" in what else 0.0), what


def test_a_text_encoder_loaded_meanwhile_is_whole(ranks):
    _, seen, folder = ranks
    expected = sum(p.numel() for p in UMT5EncoderModel.from_pretrained(folder / "text_encoder").parameters())
    assert all(rank["text encoder"] == expected for rank in seen)


def test_only_the_first_process_reads_files(ranks):
    _, seen, _ = ranks
    names = len(seen[0]["elements"]["plain"])
    assert [rank["read"] for rank in seen] == [names, *[0] * (len(seen) - 1)]
