"""Divergences with as much in closed form as there is: their mean against quadrature, and where they have no noise."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch.distributions import kl_divergence

from pyro_lvm.infer.divergence import divergence_at

NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
LOC, SCALE = torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)


def over_noise(q, p) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate at every node of the base's noise, and the difference of the log-densities there."""
    value = LOC + SCALE * NODES
    for transform in q.transforms:
        value = transform(value)
    every = q.expand(NODES.shape)
    return divergence_at(every, p.expand(NODES.shape), value), every.log_prob(value) - p.log_prob(value)


@pytest.mark.parametrize(
    "chain",
    [
        [],
        [transforms.AffineTransform(0.3, 1.6)],
        [transforms.AffineTransform(-0.2, 0.8), transforms.LeakyReLUTransform()],
        [transforms.SoftplusTransform(), transforms.AffineTransform(0.1, 2.0)],
    ],
)
def test_the_mean_over_the_noise_is_the_divergence(chain) -> None:
    base, p = dist.Normal(LOC, SCALE), dist.Normal(torch.tensor(-0.3).double(), 1.2)
    q = dist.TransformedDistribution(base, chain)
    estimate, plain = over_noise(q, p)
    assert (WEIGHTS @ estimate).item() == pytest.approx((WEIGHTS @ plain).item(), rel=1e-9)


@pytest.mark.parametrize(("factor", "ratio"), [(None, 1e-20), (1.05, 0.05), (0.9, 0.05)])
def test_the_noise_vanishes_with_the_transform(factor, ratio) -> None:
    chain = [] if factor is None else [transforms.AffineTransform(0.0, factor)]
    q = dist.TransformedDistribution(dist.Normal(LOC, SCALE), chain)
    estimate, plain = over_noise(q, dist.Normal(torch.tensor(0.0).double(), 1.0))
    spread = [WEIGHTS @ (values - WEIGHTS @ values).square() for values in (estimate, plain)]
    assert spread[0] < ratio * spread[1]


def test_the_gradient_has_the_right_mean() -> None:
    loc = LOC.clone().requires_grad_()
    p = dist.Normal(torch.tensor(-0.3).double(), 1.2)
    shift = transforms.AffineTransform(0.3, 1.6)
    every = dist.TransformedDistribution(dist.Normal(loc.expand(NODES.shape), SCALE), [shift])
    found = WEIGHTS @ divergence_at(every, p.expand(NODES.shape), shift(loc + SCALE * NODES))
    (gradient,) = torch.autograd.grad(found, loc)
    exact = kl_divergence(dist.Normal(0.3 + 1.6 * loc, 1.6 * SCALE), p)
    (expected,) = torch.autograd.grad(exact, loc)
    assert found.item() == pytest.approx(exact.item(), rel=1e-9)
    assert gradient.item() == pytest.approx(expected.item(), rel=1e-9)


def test_nothing_is_made_up_where_no_closed_form_is_known() -> None:
    q, p = dist.StudentT(3.0), dist.Normal(0.0, 1.0)
    assert divergence_at(q, p, torch.zeros(())) is None
    assert (
        divergence_at(dist.TransformedDistribution(q, [transforms.AffineTransform(0.0, 2.0)]), p, torch.zeros(()))
        is None
    )
