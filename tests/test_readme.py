"""What the documentation shows runs as shown."""

import re
import types

import torch
import yaml

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
    code = "\n".join(block for block in blocks("docs/hooks.md", "python") if "hookimpl" in block)
    module = types.ModuleType("documented")
    exec("import amd_plugin\n" + code, module.__dict__)
    plugins.register(module, "documented")
    assert plugins.make_objective("half_guidance", {"guidance_scale": 2.0}).guide_weight == 0.5
    assert plugins.rewards()["brightness"](power=2.0)(torch.ones(3, 4), [""] * 3).tolist() == [1.0] * 3


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
