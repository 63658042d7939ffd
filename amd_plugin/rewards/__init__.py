"""Rewards: the sensors that tell an objective which samples fail. See `amd_plugin.hookspecs.Reward` for the protocol."""
