"""Networks: the pipelines they are loaded from, their roles in a run, and how they are called.

Training, optimizers and processes are the host's.
"""

from amd_plugin.models.embedded.networks import build_network, check_network

__all__ = ["build_network", "check_network"]
