"""Networks of rewards on disk, and those rewards by the names recipes know."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.rewards import tiny_networks

# Their own dependencies would pull another torch; of those their networks need only timm and torchvision.
PACKAGES = ("image-reward==1.5", "open_clip_torch==3.3.0", "timm==0.6.13", "torchvision==0.28.0")


@pytest.fixture(scope="session")
def publishers(tmp_path_factory):
    """Python of an environment that has the publishers' own packages, with this one's other packages behind them."""
    folder = tmp_path_factory.mktemp("publishers")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    behind = Path(torch.__file__).parents[1]
    (site / "zz_host.pth").write_text(f"import site; site.addsitedir({str(behind)!r})\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", "--no-deps", *PACKAGES]
    subprocess.run(command, check=True, timeout=200)
    return python


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny CLIP model with its tokenizer and image processor."""
    return tiny_networks.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def options(tmp_path_factory, folder):
    """What each of the rewards with a network is built with, by name."""
    blip = tiny_networks.write_image_reward(tmp_path_factory.mktemp("blip"))
    hps = tiny_networks.write_hps(tmp_path_factory.mktemp("hps"), folder)
    head = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(tiny_networks.head_state(24), head)
    made = {
        "clip": {"path": str(folder)},
        "pickscore": {"path": str(folder), "processor": None},
        "hpsv2": {"path": str(hps), "processor": str(folder)},
        "aesthetic": {"path": str(head), "clip": str(folder)},
        "image_reward": {"path": str(blip), "tokenizer": str(blip)},
    }
    return {**made, "video": {"reward": {"name": "image_reward", **made["image_reward"]}}}


@pytest.fixture
def build(plugins, options):
    """``build("clip", frames=2)``: the reward a recipe with that entry gets."""

    def make(name, **changes):
        return plugins.reward_factory(name)(**{**options[name], **changes})

    return make
