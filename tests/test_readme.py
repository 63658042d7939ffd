"""What the documentation shows runs as shown."""

import re
import sys
import types

import pytest
import torch
import yaml
from PIL import Image

import amd_plugin
import amd_plugin.plugins
from amd_plugin.evaluate.comparison.result import Comparison
from tests.helpers import documentation
from tests.helpers.documentation import ROOT, blocks


def test_the_readmes_trainer():
    (code,) = blocks("README.md", "python")
    tensors = {name: torch.randn(8, 3) for name in ("x0", "real_cond", "real_uncond", "fake", "prediction", "target")}
    for objective in ("dmd", "amd"):
        names = {
            **tensors, "x0": tensors["x0"].clone().requires_grad_(), "args": types.SimpleNamespace(objective=objective),
            "prompts": ["a"] * 8, "prompt_ids": torch.arange(8) // 4, "sigma": torch.rand(8),
            "reward": lambda x0, prompts: x0.detach().sum(1),
        }  # fmt: skip
        exec(code, names)
        names["student_loss"].backward()
        assert torch.isfinite(names["x0"].grad).all() and torch.isfinite(names["fake_score_loss"])


def test_the_hooks_pages_plugins(plugins):
    shown = blocks("docs/hooks.md", "python")
    (by_hand,), (subclass,) = (
        [block for block in shown if word in block] for word in ("manager.register", "class WithRewards")
    )
    code = "import amd_plugin\n" + "\n".join(block for block in shown if block not in (by_hand, subclass))
    module = types.ModuleType("documented")
    exec(code, module.__dict__)
    plugins.register(module, "documented")
    exec(by_hand, {"amd_plugin": amd_plugin, "my_plugin": types.ModuleType("my_plugin")})
    exec(subclass, names := {"__name__": "documented"})
    assert names["WithRewards"](1.0).needs.reward and names["WithRewards"](1.0).needs.group_size == 2
    factors = module.distill_advantage_schedule(torch.tensor([0.2, 0.8]), step=1, max_steps=4)
    assert factors.tolist() == [0.0, 0.75]
    assert plugins.make_objective("half_guidance", {"guidance_scale": 2.0}).guide_weight == 0.5
    assert plugins.rewards()["brightness"](power=2.0)(torch.ones(3, 4), [""] * 3).tolist() == [1.0] * 3


def test_the_hooks_pages_entry_point_is_the_one_that_is_looked_for():
    tomllib = pytest.importorskip("tomllib")
    (section,) = blocks("docs/hooks.md", "toml")
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    (group,) = tomllib.loads(section)["project"]["entry-points"]
    assert group == amd_plugin.plugins.NAME and group in ours


def test_the_models_pages_family(plugins, monkeypatch):
    class Flux:
        """Stands for a family of somebody else's."""

    (code,) = blocks("docs/models.md", "python")
    module = types.ModuleType("documented")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "acme_distill", types.ModuleType("acme_distill"))
    monkeypatch.setitem(sys.modules, "acme_distill.flux", types.SimpleNamespace(Flux=Flux))
    plugins.register(module, "documented")
    assert plugins.families()["FluxPipeline"] is Flux


def test_every_page_with_python_is_one_that_a_test_runs():
    """So that a block on a new page is not forgotten."""
    run = {"README.md", *(f"docs/{name}.md" for name in ("data", "hooks", "models", "rewards", "sharding", "hosts/modelopt")),
           "docs/tutorials/your-own-reward.md", "docs/tutorials/your-own-trainer.md"}  # fmt: skip
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {page.relative_to(ROOT).as_posix() for page in pages if blocks(page, "python")} == run


def test_the_data_pages_examples(tmp_path, monkeypatch, piped):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/data.md", "python"):
        exec(code, names)
    (tmp_path / "held_out.txt").write_text("a house")
    (section,) = blocks("docs/data.md", "yaml")
    options = yaml.safe_load(section)["data"]
    data = piped("sdxl", *(f"data.{key}={value}" for key, value in options.items())).config.data
    assert data.options["column"] == "caption" and data.options["held_out"].endswith("held_out.txt")


def test_the_readme_is_read_in_two_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 700, "code, tables and links count"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_map_of_the_code_names_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for file in re.findall(r"^\d\. `(.*?)`", text, re.MULTILINE):
        assert (ROOT / file).is_file(), file
    named = set(re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE))
    package = ROOT / "amd_plugin"
    folders = {path.relative_to(package).as_posix() for pattern in ("*", "host/*", "evaluate/*") for path in package.glob(pattern)
               if any(path.glob("*.*")) and path.name not in ("__pycache__", "host", "evaluate")}  # fmt: skip
    assert named == folders


def test_code_of_the_readme_and_of_the_tutorials_fits_80_columns():
    shown = [("README.md", ""), ("README.md", "python")]
    shown += [(path.relative_to(ROOT), "python") for path in (ROOT / "docs" / "tutorials").glob("*.md")]
    for page, language in shown:
        assert [line for code in blocks(page, language) for line in code.splitlines() if len(line) > 80] == [], page


def test_the_picture_of_students_and_its_words_are_of_the_committed_results():
    """The shares at its left: in the picture's own description, and in what readers get in place of the picture."""
    script = documentation.script("docs/draw_students.py")
    # A comparison measures its teacher without guidance. At that of the pictures its share is in the page's table by guidance.
    (share,) = re.findall(r"^\| 2 \| (\.\d{3}) \| \.\d{3} \|", (ROOT / "docs" / "scenes.md").read_text(), re.MULTILINE)
    students = script.of_students(Comparison.from_file(ROOT / "docs" / "results" / "scenes_continued.json"))
    right = script.in_words({"teacher at guidance 2": float(share), **students})
    assert right.count("%") == 3
    with Image.open(ROOT / "docs" / "images" / "students.png") as picture:
        assert picture.text["Description"] == right and "CC BY 4.0" in picture.text["Copyright"]
    for page in ("README.md", "docs/scenes.md"):
        (words,) = re.findall(r"!\[([^]]*)\]\([^)]*students\.png\)", (ROOT / page).read_text())
        assert right in words, page


def test_the_readmes_prose_has_no_numbers_of_results():
    """They stand in its table, which `make docs` writes, and in the words of its picture, where tests hold them."""
    held = r"```.*?```|<!-- results -->.*?<!-- end -->|!\[.*?\]|\d{4}\.\d{5}|Python [\d.]+"
    prose = re.sub(held, "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert re.findall(r"\d+ ?%|\d?\.\d\d+|\d+ of \d+", prose) == []
