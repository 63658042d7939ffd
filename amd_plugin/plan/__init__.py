"""What a recipe needs of every GPU, and how long a cycle can take at best, before anything is bought or loaded.

    found = plan(recipe, plugins, gpus=64)        # a `Plan`: numbers
    show(found)                                   # a table

Sizes come from the recipe's own networks built without weights, memory and operations of calls from making them on fake
tensors; the rest is arithmetic on these, and is held to measured runs by the tests.
"""

from amd_plugin.plan.planner import Plan, plan, plan_with_changes
from amd_plugin.plan.show import show

__all__ = ["Plan", "plan", "plan_with_changes", "show"]
