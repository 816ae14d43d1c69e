"""A run whose loss breaks down goes back to a state whose loss was finite."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

EDGE = 2.0


def over_the_edge(x):
    """A location that climbs to the data, past an edge where the density is not a number."""
    location = pyro.param("location", torch.tensor(0.0))
    pyro.factor("edge", torch.where(location > EDGE, math.nan, 0.0) * torch.ones(()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(location, 1.0), obs=x)


def climb(**options):
    svi = lvm.infer.SVI(learning_rate=0.15)
    return lvm.fit(over_the_edge, torch.full((8,), 5.0), inference=svi, seed=0, tol=0.0, progress=False, **options)


def test_a_loss_that_breaks_down_at_finite_parameters_is_undone():
    with pytest.warns(RuntimeWarning, match=r"stopped at epoch \d+.*The last good state is kept"):
        fit = climb(max_epochs=100)
    assert EDGE / 3 < float(fit.params["location"]) <= EDGE
    assert all(math.isfinite(value) for value in fit.history["loss"])
    assert math.isfinite(fit.inference.loss(torch.full((8,), 5.0)))
