"""Fixtures shared by all tests; jaxtyping shapes are checked by beartype here and only here."""

import pytest
import torch
from jaxtyping import install_import_hook

CHECKED = [  # whatever states shapes
    "pyro_lvm.models",
    "pyro_lvm.ops.kmeans",
    "pyro_lvm.ops.special",
    "pyro_lvm.diagnostics.labels",
]

with install_import_hook(CHECKED, "beartype.beartype"):
    import pyro_lvm as lvm


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def faithful():
    return lvm.datasets.load("faithful").x


@pytest.fixture
def iris():
    return lvm.datasets.load("iris")


@pytest.fixture
def local():
    """Parameters of modules stay in the modules, those of functions in a store of the test's own."""
    import pyro

    with pyro.settings.context(module_local_params=True), pyro.get_param_store().scope():
        yield
