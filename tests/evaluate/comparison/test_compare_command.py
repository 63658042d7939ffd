"""`amd-plugin compare` from the command line to its files: seeds, arms, workers, tables and the report."""

import io
import json
import os

import pytest

from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture
def one_core(monkeypatch):
    """One worker of one thread, where nothing is about several."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})


def test_settings_are_chosen_on_seeds_apart(cli, tmp_path, one_core):
    tune = ("--tune", "objective.guidance_scale=2", "--arm", "soft=amd objective.sharpening=0.5")
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", *tune, "--seeds", "0,1", "--select-seeds", "1,5",
                        "--output", tmp_path)  # fmt: skip
    assert code == 2 and "--select-seeds" in printed and "[1]" in printed
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", *tune, "--seeds", "1", "--select-seeds", "5,6",
                        "--output", tmp_path)  # fmt: skip
    assert code == 0, printed
    content = json.loads((tmp_path / "compare.json").read_text())
    assert list(content["arms"]) == ["dmd", "soft", "dmd@guidance_scale=2", "soft@guidance_scale=2"]
    assert content["selected"].keys() == {"dmd", "soft"} and content["families"]["soft@guidance_scale=2"] == "soft"
    assert all(len(values) == 1 for values in content["arms"]["dmd"].values()), "chosen on 5 and 6, reported on 1"
    assert (tmp_path / "arms" / "soft@guidance_scale=2" / "seed-6").is_dir()
    assert "on the seeds 5, 6" in (tmp_path / "compare.md").read_text()
    assert "chosen on the seeds 5, 6" in printed and "on the seeds 5, 6" in (tmp_path / "report.html").read_text()
    assert content["unused"] == {"dmd": ["sharpening"]}
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd,amd", "--tune", "objective.sharpening=0.5",
                        "--seeds", "1", "--select-seeds", "5,", "--output", tmp_path / "other")  # fmt: skip
    assert code == 0, printed
    content = json.loads((tmp_path / "other" / "compare.json").read_text())
    assert content["selected"]["dmd"] == "dmd" and content["selected"].keys() == {"dmd", "amd"}, (
        "what is not tuned is there too"
    )
    assert all(seconds > 0 for arm in content["seconds"].values() for seconds in arm)


class Terminal(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self):
        return True


def test_long_comparisons_ask_on_a_terminal_and_start_nothing_without_a_yes(cli, tmp_path, one_core, monkeypatch):
    from amd_plugin import cli as module
    from amd_plugin.evaluate.comparison import compare

    monkeypatch.setattr(compare, "LONG", 0)
    monkeypatch.setattr(module.out, "_force_terminal", True)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", "--seeds", "2", "--output", tmp_path / "c")
    assert code == 2 and "nothing was started" in printed and not (tmp_path / "c" / "arms").exists()
    assert "2 to make, 1 at a time: about" in printed
    monkeypatch.setattr(compare, "_expected", lambda *arguments: None)  # as for a pipeline, before its first run is made
    monkeypatch.setattr(compare, "LONG", 3600)
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd", "--seeds", "2", "--output", tmp_path / "c")
    assert code == 2 and "nothing was started" in printed and "when the first is finished" in printed


def test_a_runs_folder_is_no_place_for_a_comparison(cli, tiny, plugins, tmp_path):
    from amd_plugin.host import run

    run.train(tiny("train.max_steps=1"), plugins, tmp_path / "run")
    code, printed = cli("compare", "modes2d", *TINY, "--seeds", "1", "--output", tmp_path / "run")
    assert code == 2 and "holds a run. Choose a new folder, or that of a comparison" in printed
    assert not (tmp_path / "run" / "arms").exists()


def test_a_run_of_other_settings_is_refused_before_anything_is_estimated(cli, tiny, tmp_path, one_core):
    taken = tmp_path / "arms" / "dmd" / "seed-5"
    taken.mkdir(parents=True)
    (taken / "config.yaml").write_text(tiny(objective="dmd").as_yaml())
    (taken / "run.json").write_text('{"recipe": "modes2d", "objective": "dmd"}')
    for finished in (False, True):
        if finished:
            (taken / "evaluation.json").write_text('{"precision": 0.5}')
        code, printed = cli("compare", "modes2d", *TINY, "--objectives", "amd,dmd", "--seeds", "5,", "--output", tmp_path)
        assert code == 2 and f"{taken}: holds a run " in printed and "evaluate.samples" not in printed
        assert "to make" not in printed and not (tmp_path / "arms" / "amd").exists()


def test_a_tuned_option_that_no_arm_has_is_named_by_its_nearest(cli, tmp_path):
    code, printed = cli("compare", "modes2d", *TINY, "--tune", "objective.guidance_scal=1,2", "--output", tmp_path / "c")
    assert code == 2 and "Did you mean 'objective.guidance_scale'?" in printed


def test_compare_pairs_seeds_resumes_and_reports(cli, tmp_path):
    folder = tmp_path / "comparison"
    arguments = [
        "compare",
        "modes2d",
        *TINY,
        "--set=train.log_every=1",
        "--objectives",
        "dmd,amd",
        "--seeds",
        "0,3",
        "--output",
        folder,
    ]
    code, printed = cli(*arguments, "--tune", "objective.guidance_scale=1.5")
    assert code == 0, printed
    content = json.loads((folder / "compare.json").read_text())
    assert content["task"] == "modes2d" and content["seeds"] == [0, 3]
    assert list(content["arms"]) == ["dmd", "amd", "dmd@guidance_scale=1.5", "amd@guidance_scale=1.5"]
    assert all(len(values) == 2 for arm in content["arms"].values() for values in arm.values())
    table = (folder / "compare.md").read_text()
    assert "Difference to dmd, in brackets" in table and "tuned best for each metric" in table
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 8 and "data:image/svg+xml;base64," in report
    assert report.count('<figure class="step">') == 3 and "Samples while training" in report

    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*/*/evaluation.json")}
    assert len(stamps) == 8
    code, printed = cli(*arguments, "--ablate")
    assert code == 0, printed
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    more = json.loads((folder / "compare.json").read_text())["arms"]
    assert {"amd_adaptation_only", "amd_sharpening_only", "amd_random_reward", "amd_paper"} < set(more)
    assert more["dmd"] == content["arms"]["dmd"]
    code, printed = cli("report", folder, "--output", tmp_path / "all.html")
    assert code == 0 and "How samples were weighed" in (tmp_path / "all.html").read_text()


def test_a_comparison_with_a_run_that_fails_keeps_the_others(cli, tmp_path, one_core):
    folder = tmp_path / "comparison"
    blocked = folder / "arms" / "amd" / "seed-0"
    blocked.mkdir(parents=True)
    (blocked / "cat.jpg").write_text("")
    code, printed = cli("compare", "modes2d", *TINY, "--objectives", "dmd,amd", "--seeds", "1", "--output", folder)
    assert code == 1 and "amd, seed 0" in printed and "holds no run" in printed
    assert (folder / "arms" / "dmd" / "seed-0" / "evaluation.json").exists()
