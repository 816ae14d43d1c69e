"""Laws with a point at zero: densities, draws, moments, and the posterior over supports."""

import math

import pytest
import torch
from torch.distributions import Normal, biject_to

from pyro_lvm.distributions import SpikeAndSlab
from pyro_lvm.distributions.support_mixture import SupportMixture
from pyro_lvm.ops.supports import every_support, support_scores

LAW = SpikeAndSlab(torch.tensor([0.3, 0.8]).double(), torch.tensor([0.0, 2.0]).double(), 0.5, unit=3.0)


def test_its_mass_is_one() -> None:
    grid = torch.linspace(-8, 10, 20_000, dtype=torch.float64).unsqueeze(-1)
    slab = LAW.log_prob(grid).exp().sum(0) * float(grid[1] - grid[0]) / 3.0
    spike = LAW.log_prob(torch.zeros(2).double()).exp()
    torch.testing.assert_close(spike, torch.tensor([0.7, 0.2]).double())
    torch.testing.assert_close(slab + spike, torch.ones(2).double(), rtol=1e-6, atol=0)


def test_draws_have_its_moments() -> None:
    torch.manual_seed(0)
    draws = LAW.sample((40_000,))
    torch.testing.assert_close((draws == 0).double().mean(0), torch.tensor([0.7, 0.2]).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(draws.mean(0), LAW.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), LAW.variance, atol=0.02, rtol=0)
    wide = LAW.expand([3, 2]).to_event(1)
    assert wide.sample().shape == (3, 2)
    assert wide.log_prob(torch.zeros(3, 2).double()).tolist() == pytest.approx([math.log(0.7 * 0.2)] * 3)


def test_it_is_no_density_over_the_real_numbers() -> None:
    with pytest.raises(ValueError, match=r"zero has a probability of its own.*Use guide 'sparse-codes'"):
        biject_to(LAW.support)


def test_a_mixture_over_supports_is_the_posterior() -> None:
    """By Bayes' rule at its own draws: prior times likelihood over it is the same everywhere."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64)
    x, scale, unit = torch.randn(1, 4).double(), torch.tensor([0.5, 1.0, 2.0]).double(), torch.ones(3).double() * 0.7
    prior = SpikeAndSlab(torch.tensor([0.2, 0.5, 0.7]).double(), 0.0, scale, unit)
    columns = weight * scale / 0.4
    products, gram = x @ columns / 0.4, columns.mT @ columns
    found = support_scores(products, gram)
    weights = found.fit - found.volume + every_support(products, 3) @ prior.inclusion_probability.logit()
    two = (torch.cat([part.flip(-1), part]) for part in (weights, products, gram[None]))
    law = SupportMixture(*two, scale, unit, torch.ones(4000, dtype=torch.long))
    draws = law.sample()
    joint = prior.log_prob(draws).sum(-1) + Normal(draws @ weight.mT, 0.4).log_prob(x).sum(-1)
    evidence = joint - law.log_prob(draws)
    torch.testing.assert_close(evidence, evidence[:1].expand(4000), atol=1e-9, rtol=0)
    dense = [
        float(
            torch.distributions.MultivariateNormal(
                torch.zeros(4).double(), 0.16 * torch.eye(4).double() + (weight * scale**2 * s) @ weight.mT
            ).log_prob(x[0])
            + torch.where(s > 0, prior.inclusion_probability, 1 - prior.inclusion_probability).log().sum()
        )
        for s in every_support(products, 3)
    ]
    assert float(evidence[0]) == pytest.approx(float(torch.tensor(dense).double().logsumexp(0)), abs=1e-5)
    share = law.log_weights[1].exp() @ every_support(products, 3)
    torch.testing.assert_close((draws != 0).double().mean(0), share, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.mean(0), law.mean[0], atol=0.05, rtol=0)
    some = SupportMixture(torch.eye(8).double().log(), torch.zeros(8, 3).double(), gram.repeat(8, 1, 1), scale, unit)
    assert ((some.sample() != 0) * torch.tensor([1, 2, 4])).sum(-1).tolist() == list(range(8))
    with pytest.raises(ValueError, match="Repeat the rows"):
        law.sample((2,))
