"""What docs/rewards.md shows runs as shown."""

import re
import types

import pytest
import torch
import yaml

from amd_plugin.config import RewardConfig
from amd_plugin.options import options_model
from amd_plugin.rewards.protocol import to_pil
from amd_plugin.rewards.reward_set import RewardSet
from tests.helpers.documentation import ROOT, blocks

PAGE = "docs/rewards.md"
MEDIA = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def test_the_rewards_and_the_adapters(plugins):
    _, own, trl, back = blocks(PAGE, "python")
    for name, code in (("own", own), ("trl", trl)):
        module = types.ModuleType(name)
        exec(code, module.__dict__)
        plugins.register(module, name)
    configs = [RewardConfig(name="saturation", power=0.5), RewardConfig(name="landscape")]
    scores = RewardSet(configs, plugins, task=None)(MEDIA, ["a", "b"])
    expected = (MEDIA.amax(1) - MEDIA.amin(1)).flatten(1).mean(1)
    torch.testing.assert_close(scores.each["saturation"], expected.sqrt())
    assert scores.each["landscape"].tolist() == [1.0, 1.0]
    names = {"prompts": ["a", "b"], "images": to_pil(MEDIA)}
    exec(own + back, names)
    assert names["scores"] == pytest.approx(expected.tolist(), abs=0.01)


def test_the_recipes_options_are_those_of_the_rewards(plugins):
    entries = [entry for text in blocks(PAGE, "yaml") for entry in yaml.safe_load(text)["rewards"]]
    known = plugins.rewards()
    documented = {entry.pop("name"): entry for entry in entries if entry["name"] in known}
    for name, options in documented.items():
        options_model(known[name], ignore=("task", "plugins")).model_validate(options)
    assert len(documented) == 7


def test_every_built_in_reward_is_listed(plugins):
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / PAGE).read_text(), re.MULTILINE)
    assert set(table) == set(plugins.rewards())
