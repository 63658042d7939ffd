"""Rewards: the sensors that tell an objective which samples fail. `amd_plugin.rewards.protocol` says what a reward is."""
