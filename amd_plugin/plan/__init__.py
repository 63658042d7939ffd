"""The memory a recipe needs per GPU, and the least time of a training cycle, before anything is rented or loaded.

    estimate = plan(recipe, plugins, gpus=64, gpu_memory=80_000_000_000)   # a `Plan`: numbers
    show(estimate)                                                         # tables

Sizes come from the recipe's own networks, built without weights. Memory and operations of a call come from running it on fake
tensors. The rest is arithmetic on these, which the tests compare with real runs.
"""

from amd_plugin.plan.planner import Plan, plan, plan_with_changes
from amd_plugin.plan.show import show

__all__ = ["Plan", "plan", "plan_with_changes", "show"]
