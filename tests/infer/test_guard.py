"""What is a fall of the log-likelihood, and what is only rounding or a variance on its floor."""

import itertools
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.infer.m_step import closed_form, closed_form_of

pytestmark = pytest.mark.usefixtures("local")


def mixture(law, x, loc, scale):
    def program(x):
        weights = pyro.param("weights", torch.ones(len(loc)).to(x) / len(loc), constraint=constraints.simplex)
        locs = pyro.param("loc", loc.to(x))
        scales = pyro.param("scale", scale.to(x), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", law(locs[z], scales[z]).to_event(1), obs=x)

    return program


def train(law, x, loc, scale, steps=40):
    em = lvm.infer.EM(mixture(law, x, loc, scale))
    losses = [em.step(x) for _ in range(steps)]
    return losses, em.plan(x)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
@pytest.mark.parametrize("shift", [0.0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("name", ["faithful", "iris", "wine"])
def test_single_precision_raises_no_false_alarm(name, shift, covariance):
    x = lvm.datasets.load(name).x.float() + shift
    model = lvm.models.GaussianMixture(3, covariance=covariance)
    fit = lvm.fit(model, x, inference="em", seed=0, max_epochs=60, tol=0.0, patience=60, progress=False)
    assert not fit.plan(x).gradient


@pytest.mark.parametrize("law", [dist.Normal, dist.Laplace])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_variance_that_starts_below_its_floor_is_raised_to_it(law, dtype):
    x = torch.cat([torch.randn(20, 2), torch.randn(20, 2) + 1e6]).to(dtype)
    losses, plan = train(law, x, x[[0, -1]].clone(), torch.ones(2, 2))
    assert losses[-1] > losses[0]
    assert all(b <= a + 1e-5 * abs(a) for a, b in itertools.pairwise(losses[1:]))
    assert not plan.gradient


class Wrong(dist.Normal):
    """A normal whose location is learned wrongly."""


def test_a_wrong_closed_form_is_found_beside_a_variance_on_its_floor():
    form = closed_form(dist.Normal(0.0, 1.0))
    right, variance = form.arguments
    loc = replace(right, same_cells=None, solve=lambda *sums: right.solve(*sums) + 1e5)
    closed_form_of(Wrong)(type("WrongForm", (type(form),), {"arguments": (loc, variance)}))
    x = torch.cat([torch.randn(20, 1), torch.randn(20, 1) + 1e8]).double()
    with pytest.warns(RuntimeWarning, match="loc.* will be updated by gradient"):
        _, plan = train(Wrong, x, x[[0, -1]].clone(), torch.full((2, 1), 1e5), steps=4)
    assert "loc" in {entry.name for entry in plan.gradient}


@pytest.mark.parametrize("factor", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize("argument", ["scale_tril", "precision_matrix", "covariance_matrix"])
def test_a_matrix_is_recognised_in_any_unit(argument, factor):
    power = {"covariance_matrix": 2, "scale_tril": 1, "precision_matrix": -2}[argument]
    constraint = constraints.lower_cholesky if argument == "scale_tril" else constraints.positive_definite

    def program(x):
        loc = pyro.param("loc", factor * torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double())
        start = torch.tensor([[1.0, 0.0], [0.0, 0.5]]).double() * factor**power
        matrix = pyro.param("matrix", start.repeat(2, 1, 1), constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2).double() / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.MultivariateNormal(loc[z], **{argument: matrix[z]}), obs=x)

    x = factor * torch.randn(30, 2).double()
    em = lvm.infer.EM(program)
    losses = [em.step(x) for _ in range(5)]
    assert not em.plan(x).gradient
    assert all(b <= a + 1e-10 * abs(a) for a, b in itertools.pairwise(losses))
