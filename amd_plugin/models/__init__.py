"""Networks: the pipelines they come from, the roles they play, and how they are called."""

from amd_plugin.models.embedded.networks import build_network, check_network

__all__ = ["build_network", "check_network"]
