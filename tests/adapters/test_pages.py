"""The pages of the hosts, as far as they can be checked without one; `inside` runs them in the hosts themselves."""

import re
import shlex

import pytest
import yaml
from typer.testing import CliRunner

from amd_plugin.adapters import offers
from amd_plugin.adapters.host_objective import adaptive_objective
from amd_plugin.adapters.named_rewards import check_reward
from amd_plugin.adapters.own_options import split_options
from amd_plugin.cli import app
from amd_plugin.errors import MissingDependency
from tests.helpers.documentation import ROOT, blocks

PAGES = {
    "fastvideo": offers.FASTVIDEO,
    "fastgen": offers.FASTGEN,
    "lightx2v": offers.LIGHTX2V_VIDEO,
    "modelopt": offers.MODELOPT,
}


def test_every_host_has_a_page_and_a_proposal():
    for folder in ("hosts", "upstream"):
        assert {page.stem for page in (ROOT / "docs" / folder).glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_a_page_is_of_a_kind_that_is_run_or_read(name):
    kinds = set(re.findall(r"^```(\w*)\n", page(name), re.M))
    assert kinds <= {"", "yaml", "python", "text"} and page(name).count("```") % 2 == 0
    commands = [line.split()[0] for block in blocks(f"docs/hosts/{name}.md", "") for line in block.splitlines()]
    # `pip`, `git` and `export` install; the rest is run inside the host.
    assert set(commands) <= {"pip", "git", "export", "amd-plugin", "torchrun", "python"}


@pytest.mark.parametrize("name", PAGES)
def test_the_options_of_a_page_are_valid(name):
    sections = [yaml.safe_load(block) for block in blocks(f"docs/hosts/{name}.md", "yaml")]
    sections += [{"amd": yaml.safe_load(text)} for text in re.findall(r"model_class\.amd=(\{.*?\})'", page(name))]
    assert sections or name == "modelopt"
    for section in sections:
        while "amd" not in section:
            section = section["method"] if "method" in section else next(iter(section.values()))
        options, own = split_options(section["amd"], "amd")
        check_reward(own.reward)
        adaptive_objective(3.0, options, PAGES[name])
        assert own.group_size == 1 or "repeats" in PAGES[name]


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_reach_its_adapter(name):
    lines = [line for block in blocks(f"docs/hosts/{name}.md", "") for line in block.splitlines()]
    found = [
        shlex.split(line.split("-m amd_plugin.cli")[-1]) for line in lines if re.search(r"amd[-_]plugin(\.cli)? host", line)
    ]
    for words in found:
        done = CliRunner().invoke(app, words[words.index("host") :])
        assert isinstance(done.exception, MissingDependency) and "not installed" in str(done.exception), done.output
    assert found or name == "modelopt"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_installs_what_is_tested(name):
    """The requirement, or the commit, of the adapter's own source."""
    folder = ROOT / "amd_plugin" / "adapters"
    source = "".join(file.read_text() for file in folder.glob(f"{name}*.py"))
    wanted = re.findall(r'^TESTED = "(\w{40})"', source, re.M) or re.findall(r'^HOST = Host\(.*"([^"]+)"\)', source, re.M)
    assert wanted and all(text in page(name) for text in wanted)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_everything_that_is_refused(name):
    refused = page(name).rpartition("## What is refused")[2]
    options = {option for need in set(PAGES["modelopt"] ^ offers.EVERYTHING) | {"reward_gradient", "fake_score_outcome"}
               for option in offers.options_of(need) if need not in PAGES[name]}  # fmt: skip
    assert all(f"`{option}`" in refused for option in options if not option.startswith("gan_r1"))


def page(name):
    return (ROOT / "docs" / "hosts" / f"{name}.md").read_text()
