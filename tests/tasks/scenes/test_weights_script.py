"""The script that makes the weights of scenes and says how good they are: its gate, and what it prints of the judges' limits."""

import pytest

from amd_plugin.tasks.scenes.grammar import KINDS
from tests.helpers.documentation import ROOT, script


@pytest.fixture(scope="module")
def weights():
    return script("benchmarks/scenes_weights.py")


def found(score, single, other=0.5):
    return {**dict.fromkeys(KINDS, other), "score": score, "single": single}


def test_the_gate_needs_all_scales_and_says_what_fails(weights):
    good, poor = found(0.6, 0.95), found(0.5, 0.8)
    assert weights.gate({1: poor, 2: good, 3: poor}) == "passed"
    assert weights.gate({1: poor}) == "not decided: the best guidance is not known without w = 2, 3; give --scales 1,2,3"
    assert weights.gate({1: poor, 2: poor, 3: poor}) == "FAILED: singles 0.800"
    assert weights.gate(dict.fromkeys((1, 2, 3), found(0.9, 0.9, 1.0))).startswith("FAILED: score 0.900, no error in two")


def test_the_limits_of_the_judges(weights, capsys):
    """Part of what the page of scenes says: a whole thing is seen, a clipped one is not, and no judge sees what both miss."""
    weights.limits(weights.recipe())
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    found = {row[0]: row[2:] for row in rows}
    assert found["a key"] == ["right", "1.00", "1.00"]
    assert found["a key, and a bell cut off after 12 of 12 columns"] == ["wrong", "0.00", "0.00"]
    assert found["a key, and a bell cut off after 6 of 12 columns"] == ["wrong", "1.00", "1.00"]
    page = (ROOT / "docs" / "scenes.md").read_text()
    assert all(f"| {row[0]} | {row[1]} | {row[2]} |" in page for row in rows)


def test_settings_are_refused_for_what_makes_the_packages_weights(weights, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scenes_weights.py", "judges", "--set", "data.objects=[dog,tree,moon]"])
    with pytest.raises(SystemExit):
        weights.main()
    assert "leave --set out" in capsys.readouterr().err
