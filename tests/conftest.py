"""Fixtures shared by all tests; jaxtyping shapes are checked by beartype here and only here."""

import warnings

import pyro
import pytest
import torch
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import install_import_hook

CHECKED = [  # whatever states shapes
    "pyro_lvm.models",
    "pyro_lvm.ops.kmeans",
    "pyro_lvm.ops.special",
    "pyro_lvm.diagnostics.labels",
]

with warnings.catch_warnings(), install_import_hook(CHECKED, "beartype.beartype"):
    # Pyro's distributions inherit from typing.Callable, so annotations with one of ours would be reported
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    import pyro_lvm as lvm

torch.set_num_threads(1)  # one core for each of pytest-xdist's workers


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_parameters():
    """Parameters that a test puts into Pyro's global store are not there for the next one."""
    with pyro.get_param_store().scope():
        yield


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


@pytest.fixture
def counting():
    """A class of models that take sample weights, missing values, and known components, to test what is general."""
    import pyro
    import pyro.distributions as dist
    from pyro import poutine
    from torch.distributions import constraints

    class Counting(lvm.protocols.LatentVariableModel):
        handles_missing = True

        def __init__(self, num_components=2, data_dim=None):
            super().__init__()
            self.num_components, self.data_dim = num_components, data_dim
            if data_dim is not None:
                self.initialize(torch.zeros(1, data_dim))

        def forward(self, x=None, *, size=None, sample_weights=None, z=None):
            weights, loc, scale = self.weights, self.loc, self.scale
            count = 1.0 if sample_weights is None else sample_weights
            with pyro.plate("data", size if x is None else len(x)), poutine.scale(scale=count):
                state = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
                fn = dist.Normal(loc[state], scale[state])
                if x is None:
                    return pyro.sample("x", fn.to_event(1))
                return pyro.sample("x", fn.mask(~x.isnan()).to_event(1), obs=x.nan_to_num(0.0))

        def check(self, x):
            if x.dim() != 2:
                raise ValueError(f"Counting: expected x of shape (n, d); got {tuple(x.shape)}. Reshape it.")

        def initialize(self, x):
            self.check(x)
            k, self.data_dim = self.num_components, x.shape[1]
            start = x.nanmean(0) + torch.linspace(-1, 1, k).to(x).unsqueeze(-1)
            self.declare("weights", torch.full((k,), 1 / k).to(x), constraints.simplex)
            self.declare("loc", start, constraints.real)
            self.declare("scale", torch.ones_like(start), constraints.positive)

    return Counting
