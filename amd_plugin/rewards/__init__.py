"""Rewards score samples, so that an objective can see which of them fail. `amd_plugin.rewards.protocol` defines a reward."""
