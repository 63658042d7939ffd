"""The examples in the docstrings of the maths are true, and every public function has one."""

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

from amd_plugin import maths

MODULES = [import_module(f"{maths.__name__}.{found.name}") for found in pkgutil.iter_modules(maths.__path__)]
PUBLIC = {
    f"{module.__name__}.{name}": member
    for module in MODULES
    for name, member in vars(module).items()
    if not name.startswith("_") and inspect.isfunction(member) and member.__module__ == module.__name__
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_examples_are_true(module):
    with torch.random.fork_rng():
        failed, tried = doctest.testmod(module)
    assert tried and not failed


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_an_example(name):
    assert ">>> " in (PUBLIC[name].__doc__ or "")
