"""A `MixtureSameFamily` site, opened, is learned as the mixture written out by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import constraints

import pyro_lvm as lvm

pytestmark = pytest.mark.usefixtures("local")
positive = constraints.positive

LAWS = {
    "normal": (lambda a, b: dist.Normal(a, b), (3,), (3,), ()),
    "independent": (lambda a, b: dist.Normal(a, b).to_event(1), (3, 2), (3, 2), (2,)),
    "shared scale": (lambda a, b: dist.Normal(a, b).to_event(1), (3, 2), (), (2,)),
    "matrix": (lambda a, b: dist.MultivariateNormal(a, b * torch.eye(2).double()), (3, 2), (3, 1, 1), (2,)),
    "laplace": (lambda a, b: dist.Laplace(a, b), (3,), (3,), ()),
    "gamma": (lambda a, b: dist.Gamma(1 + a.square(), b), (3,), (3,), ()),
    "beta": (lambda a, b: dist.Beta(1 + a.square(), b), (3,), (3,), ()),
    "coins": (lambda a, b: dist.Bernoulli(logits=a * b).to_event(1), (3, 2), (3, 1), (2,)),
}


def programs(law, a_shape, b_shape):
    def parameters():
        a = pyro.param("a", torch.linspace(-1, 2, torch.Size(a_shape).numel()).double().reshape(a_shape))
        b = pyro.param(
            "b", torch.linspace(0.5, 1.5, torch.Size(b_shape).numel()).double().reshape(b_shape), constraint=positive
        )
        weights = pyro.param("weights", torch.tensor([0.2, 0.5, 0.3]).double(), constraint=constraints.simplex)
        return weights, law(a, b)

    def closed(x):
        weights, components = parameters()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)

    return closed


@pytest.mark.parametrize("name", LAWS)
def test_the_density_stays_and_em_never_falls(name):
    law, a_shape, b_shape, event = LAWS[name]
    closed = programs(law, a_shape, b_shape)
    x = torch.rand(40, *event).double()
    x = (x > 0.5).double() if name == "coins" else x
    expected = poutine.trace(closed).get_trace(x).log_prob_sum().item()
    em = lvm.infer.EM(lvm.handlers.open_mixtures(closed))
    losses = [em.step(x) for _ in range(5)]
    assert losses[0] == pytest.approx(-expected, rel=1e-10)
    assert losses == sorted(losses, reverse=True)
    assert em.plan(x).parameters["weights"].closed


@pytest.mark.parametrize("name", ["normal", "independent", "shared scale", "laplace"])
def test_plain_parameters_are_learned_in_closed_form(name):
    law, a_shape, b_shape, event = LAWS[name]
    plan = lvm.infer.EM(lvm.handlers.open_mixtures(programs(law, a_shape, b_shape))).plan(
        torch.rand(9, *event).double()
    )
    assert not plan.gradient, str(plan)


def test_parameters_that_vary_by_row():
    covariate, x = torch.linspace(0, 1, 30).double(), torch.randn(30).double()

    def closed(x):
        slope = pyro.param("slope", torch.tensor([-1.0, 2.0]).double())
        components = dist.Normal(covariate.unsqueeze(-1) * slope, 1.0)
        with pyro.plate("data", len(x)):
            law = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6]).double()), components)
            pyro.sample("x", law, obs=x)

    expected = poutine.trace(closed).get_trace(x).log_prob_sum().item()
    assert lvm.infer.EM(lvm.handlers.open_mixtures(closed)).loss(x) == pytest.approx(-expected, rel=1e-10)


def test_what_cannot_be_opened_stays():
    x = torch.randn(5, 2)

    def columns(x):
        law = dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 3) / 3), dist.Normal(torch.zeros(2, 3), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", law.to_event(1), obs=x)

    def latent(x):
        law = dist.MixtureSameFamily(dist.Categorical(torch.ones(3) / 3), dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("y", law)

    for program, name in ((columns, "x"), (latent, "y")):
        sites = poutine.trace(lvm.handlers.open_mixtures(program)).get_trace(x).nodes
        assert name in sites
        assert f"{name}_component" not in sites
