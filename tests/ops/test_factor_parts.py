"""The maximum of factor analysis: against the dense likelihood and its gradient, peers, and degenerate covariances."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import decomposition
from torch.distributions import MultivariateNormal

from pyro_lvm.ops.factor_parts import NOISE_FLOOR, canonical, factor_parts


def rows(n=300, d=8, k=3, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(n, k).double() @ torch.randn(k, d).double()
    return (x + torch.rand(d).double().add(0.3) * torch.randn(n, d).double()) * torch.logspace(-2, 2, d).double()


def covariance_of(x):
    centred = x - x.mean(0)
    return centred.mT @ centred / len(x)


def log_likelihood(x, weight, noise):
    return MultivariateNormal(x.mean(0), weight @ weight.mT + noise.diag()).log_prob(x).mean()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradient_is_zero_and_no_peer_is_better(k):
    x = rows()
    weight, noise = (part.requires_grad_() for part in factor_parts(covariance_of(x), k))
    value = log_likelihood(x, weight, noise)
    spread = x.std(0).detach()
    for part, unit in ((weight, spread.unsqueeze(-1)), (noise, noise.detach())):
        (gradient,) = torch.autograd.grad(value, part, retain_graph=True)
        assert float((gradient * unit).abs().max()) < 1e-6
    scaled = (x / spread).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it has not converged
        peer = decomposition.FactorAnalysis(k, tol=1e-10, max_iter=3000, svd_method="lapack").fit(scaled)
    theirs = peer.score(scaled)
    assert float(value.detach()) + float(spread.log().sum()) >= theirs - 1e-9


def test_a_column_that_is_explained_wholly_has_the_least_noise():
    x = rows()
    x = torch.cat([x, x[:, :1] * 3], 1)
    weight, noise = factor_parts(covariance_of(x), 2)
    share = noise / (weight.square().sum(-1) + noise)
    assert float(share.min()) == pytest.approx(NOISE_FLOOR, rel=0.01)
    assert torch.isfinite(log_likelihood(x, weight, noise))


@pytest.mark.parametrize("make", [
    lambda: torch.eye(4).double(),  # nothing in common
    lambda: torch.ones(4, 4).double(),  # of rank one
    lambda: covariance_of(rows(n=4)),  # fewer rows than columns
    lambda: covariance_of(rows()).float(),
    lambda: torch.eye(1).double(),
])  # fmt: skip
def test_degenerate_covariances_have_finite_parts(make):
    covariance = make()
    weight, noise = factor_parts(covariance, min(2, len(covariance)))
    assert weight.dtype == noise.dtype == covariance.dtype
    assert bool(torch.isfinite(weight).all())
    assert bool((noise > 0).all())
    torch.testing.assert_close(weight.square().sum(-1) + noise, covariance.diagonal(), rtol=1e-2, atol=1e-6)


def test_units_do_not_matter():
    x, unit = rows(), torch.logspace(3, -3, 8).double()
    one, other = factor_parts(covariance_of(x), 3), factor_parts(covariance_of(x * unit), 3)
    torch.testing.assert_close(other[0], one[0] * unit.unsqueeze(-1), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(other[1], one[1] * unit.square(), rtol=1e-4, atol=0)


def test_canonical_loadings_have_the_same_law():
    torch.manual_seed(3)
    weight, noise = torch.randn(6, 3).double(), torch.rand(6).double() + 0.1
    found = canonical(weight, noise)
    torch.testing.assert_close(found @ found.mT, weight @ weight.mT)
    information = found.mT @ (found / noise.unsqueeze(-1))
    torch.testing.assert_close(information, information.diagonal().diag(), rtol=0, atol=1e-10)
    assert bool((information.diagonal().diff() <= 0).all())
    scaled = found / noise.sqrt().unsqueeze(-1)
    np.testing.assert_array_less(0, scaled.gather(0, scaled.abs().argmax(0, keepdim=True)).numpy())
