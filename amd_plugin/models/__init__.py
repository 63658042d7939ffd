"""The networks of the embedded tasks: one class serves as teacher, student and fake score."""

from amd_plugin.models.networks import ClassConditional, build_network, check_network

__all__ = ["ClassConditional", "build_network", "check_network"]
