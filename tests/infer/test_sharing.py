"""One parameter used at several sites: families that share an argument, joint maxima along a chain, mixed types."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.distributions import PartialMultivariateNormal
from pyro_lvm.infer.maximise import groups

pytestmark = pytest.mark.usefixtures("local")

ENUMERATED = {"enumerate": "parallel"}


def shared(x, y, known):
    loc = pyro.param("loc", torch.tensor([[0.0, 0.0], [3.0, 3.0]]).double())
    covariance = pyro.param(
        "covariance", torch.eye(2).double().repeat(2, 1, 1), constraint=constraints.positive_definite
    )
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2).double() / 2), infer=ENUMERATED)
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance[z]), obs=x)
        if known is None:
            pyro.sample("y", dist.MultivariateNormal(loc[z], covariance[z]), obs=y)
        else:
            pyro.sample("y", PartialMultivariateNormal(loc[z], covariance[z], known), obs=y)


def losses_of(program, *args, steps=6):
    em = lvm.infer.EM(program)
    return [em.step(*args) for _ in range(steps)]


def test_a_normal_with_gaps_shares_parameters_with_a_complete_one():
    x = torch.randn(40, 2).double() + 3 * torch.randint(2, (40, 1))
    y, known = torch.randn(40, 2).double(), torch.rand(40, 2) > 0.3
    plan = lvm.infer.EM(shared).plan(x, y, known)
    assert {entry.name for entry in plan.closed} == {"loc", "covariance"}
    losses = losses_of(shared, x, y, known)
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(losses))
    pyro.clear_param_store()
    everything = losses_of(shared, x, y, torch.ones_like(known))
    pyro.clear_param_store()
    assert everything == pytest.approx(losses_of(shared, x, y, None), rel=1e-10)


def gammas(x):
    transition = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
    a = pyro.param("a", torch.tensor([1.0, 2.0]).double(), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor([1.0, 1.0]).double(), constraint=constraints.positive)
    with pyro.plate("sequences", len(x)):
        z = 0
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(transition[z]), infer=ENUMERATED)
            pyro.sample(f"x_{t}", dist.Gamma(a[z], b[z]), obs=x[:, t])


def test_a_joint_maximum_over_a_chain_is_the_one_maximising_in_turn_reaches(monkeypatch):
    x = dist.Gamma(3.0, 1.0).sample((30, 5)).double()
    (group,) = groups(lvm.infer.EM(gammas).plan(x))
    assert [entry.name for entry in group] == ["a", "b"]
    pyro.clear_param_store()
    jointly = losses_of(gammas, x)
    pyro.clear_param_store()
    monkeypatch.setattr("pyro_lvm.infer.maximise._joint", lambda entries: None)
    assert losses_of(gammas, x) == pytest.approx(jointly, rel=1e-6)
    assert "by gradient" not in str(lvm.infer.EM(gammas).plan(x))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_factors_of_two_types_give_the_better_of_both(dtypes):
    def bridge(x, first, second):
        scores = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
        rate = pyro.param("rate", torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(x), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(scores[0].to(first)), infer=ENUMERATED)
            b = pyro.sample("b", dist.Categorical(scores.to(second)[a]), infer=ENUMERATED)
            c = pyro.sample("c", dist.Categorical(scores.to(first)[b]), infer=ENUMERATED)
            pyro.sample("x", dist.Poisson(rate[a, c]), obs=x)

    x = torch.arange(6.0).double()
    mixed = losses_of(bridge, x, *dtypes)
    pyro.clear_param_store()
    assert mixed == pytest.approx(losses_of(bridge, x, torch.float64, torch.float64), rel=1e-6)


@pytest.mark.parametrize("scale", [torch.tensor([1.0, 2.0, 1e-9, 0.5]), torch.tensor(2.0)])
def test_a_program_without_latent_sites_under_a_tensor_scale(scale):
    def program(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=scale):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.tensor([1.0, 2.0, 50.0, 4.0])
    losses_of(program, x, steps=2)
    weights = scale.expand(4)
    assert pyro.param("loc").item() == pytest.approx(float((weights * x).sum() / weights.sum()), rel=1e-6)
