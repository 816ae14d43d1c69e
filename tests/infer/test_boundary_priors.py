"""Priors whose modes are on the boundary, and priors that are masked out: EM rises, and a grid can do no better."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_lvm as lvm

pytestmark = pytest.mark.usefixtures("local")


@pytest.mark.parametrize("start", [0.3, 0.7])
@pytest.mark.parametrize("counted", [(0.05, 0.05), (0.3, 0.01), (0.9, 0.02), (0.05, 2.0), (2.0, 0.05), (0.95, 0.2)])
def test_a_density_with_two_poles_ends_at_the_higher(counted, start):
    x, weights = torch.tensor([1.0, 0.0]).double(), torch.tensor(counted).double()

    def coin(x):
        p = pyro.sample("p", dist.Beta(x.new_tensor(0.1), x.new_tensor(0.9)))
        with pyro.plate("data", len(x)), poutine.scale(scale=weights):
            z = pyro.sample("z", dist.Categorical(x.new_ones(1)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(p.expand(1)[z]), obs=x)

    guide = lvm.guides.MAP(coin, {"p": torch.tensor(start).double()})
    em = lvm.infer.EM(coin, guide)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [em.step(x) for _ in range(5)]
    assert not [w for w in caught if "fell" in str(w.message)]
    grid = torch.linspace(1e-6, 1 - 1e-6, 1001).double()
    density = dist.Beta(0.1, 0.9).log_prob(grid) + counted[0] * grid.log() + counted[1] * (1 - grid).log()
    assert -losses[-1] >= float(density.max()) - 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_masked_priors_do_not_count(steps):
    x = torch.bernoulli(torch.full((40, steps), 0.3)).double()

    def model(x, prior):
        with poutine.mask(mask=prior):
            probs = pyro.sample("probs", dist.Beta(x.new_tensor([0.1, 0.2]), x.new_tensor(0.9)).to_event(1))
        with pyro.plate("data", len(x)):
            z = 0
            for t in pyro.markov(range(steps)):
                moves = x.new_tensor([[0.7, 0.3], [0.2, 0.8]])[z]
                z = pyro.sample(f"z_{t}", dist.Categorical(moves), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Bernoulli(probs[z]), obs=x[:, t])

    def likelihood(x):
        probs = pyro.param("probs", x.new_tensor([0.4, 0.6]), constraint=dist.constraints.unit_interval)
        poutine.block(poutine.condition(model, {"probs": probs}), hide=["probs"])(x, True)

    masked = lvm.infer.EM(model, lvm.guides.MAP(model, {"probs": x.new_tensor([0.4, 0.6])}))
    plain = lvm.infer.EM(likelihood)
    for _ in range(20):
        assert masked.step(x, False) == pytest.approx(plain.step(x), rel=1e-9)
