"""Examples in docstrings run, by import name."""

import doctest
import importlib
import pkgutil

import pyro
import pytest

import pyro_lvm as lvm

MODULES = [
    m.name for m in pkgutil.walk_packages(lvm.__path__, "pyro_lvm.") if not m.name.endswith(("__main__", ".demo"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    with pyro.get_param_store().scope():  # parameters of one module's examples are no other's
        failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0
