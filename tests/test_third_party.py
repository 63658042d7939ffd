"""A third-party distribution, built and pip-installed into an environment of its own, without touching our code."""

import json
import textwrap
from functools import partial

import pytest

from tests.helpers.commands import ends_of

SOURCES = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "acme-distill"
        version = "2.1"
        [project.entry-points.distill_host]
        acme = "acme_distill"
        acme_broken = "acme_broken"
        [tool.hatch.build.targets.wheel]
        packages = ["acme_distill", "acme_broken"]
    """,
    "acme_distill/__init__.py": '''
        """An objective and a reward, as a user of amd-plugin would write them."""
        import amd_plugin


        @amd_plugin.hookimpl
        def distill_objectives():
            from amd_plugin import DMDObjective, operators

            class HalfGuidance(DMDObjective):
                """DMD with a constant weight on guidance."""

                def __init__(self, guidance_scale: float = 1.0, *, guide_weight: float = 0.5):
                    super().__init__(guidance_scale)
                    self.guide_weight = guide_weight

                def operator(self):
                    return operators.chain(operators.dmd(self.guidance_scale), operators.weigh(guide=self.guide_weight))

            return {"acme_half": HalfGuidance}


        @amd_plugin.hookimpl
        def distill_rewards():
            def near_origin(radius: float = 1.0):
                return lambda media, prompts: -(media.flatten(1).norm(dim=1) - radius).abs()

            return {"acme_radius": near_origin}
    ''',
    "acme_broken/__init__.py": "import a_module_that_nobody_has\n",
}


@pytest.fixture
def acme(environment, tmp_path, monkeypatch):
    python, install = environment
    source = tmp_path / "acme"
    for name, text in SOURCES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(textwrap.dedent(text))
    install(source)
    monkeypatch.delenv("AMD_PLUGIN_LOAD")

    return partial(ends_of, cwd=tmp_path, python=python)


def test_it_is_found_listed_and_used(acme, tmp_path):
    tiny = [f"--set={s}" for s in ("model.width=16", "model.teacher.steps=10", "train.max_steps=2", "train.trackers=[]")]
    own = ["--set=rewards=[{name: acme_radius, radius: 2.0}]", "--set=objective.guide_weight=0.25"]
    listed, trained, broken, misspelt = acme(
        ["plugins", "--json"],
        ["train", "modes2d", "--objective", "acme_half", *tiny, *own, "--output", "run"],
        ["train", "modes2d", "--objective", "acme_broken", "--dry-run"],
        ["train", "modes2d", "--objective", "acme_half", "--set=objective.guide_wait=1", "--dry-run"],
    )
    assert listed.code == 0, listed.err
    listing = json.loads(listed.out)
    statuses = {row["name"]: row for row in listing["plugins"]}
    assert statuses["acme"]["status"] == "active" and statuses["acme"]["distribution"] == "acme-distill 2.1"
    assert statuses["acme_broken"]["status"] == "failed"
    assert "a_module_that_nobody_has" in statuses["acme_broken"]["cause"]
    assert "acme_half" in listing["objectives"] and "acme_radius" in listing["rewards"]

    assert trained.code == 0, trained.err
    assert "guide_weight: 0.25" in (tmp_path / "run" / "config.yaml").read_text()
    assert broken.code == 2 and "a_module_that_nobody_has" in broken.err
    assert misspelt.code == 2 and "Did you mean 'guide_weight'?" in misspelt.err
