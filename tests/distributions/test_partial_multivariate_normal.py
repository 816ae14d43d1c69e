"""The exact marginal of known entries, against dense linear algebra and numerical marginalisation."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_lvm import distributions
from pyro_lvm.distributions import PartialMultivariateNormal, partial_multivariate_normal


def problem(n=40, components=3, d=4, missing=0.4, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    loc = torch.randn(components, 1, d, dtype=dtype)
    root = torch.randn(components, 1, d, d, dtype=dtype)
    covariance = root @ root.mT + 0.5 * torch.eye(d, dtype=dtype)
    x = 2 * torch.randn(n, d, dtype=dtype)
    known = torch.rand(n, d) > missing
    known[0], known[1] = False, True
    return loc, covariance, x, known


def dense(loc, covariance, x, known):
    """One row and one component at a time."""
    loc, covariance, x, known = (t.numpy() for t in (loc, covariance, x, known))
    table = np.zeros((len(loc), len(x)))
    for k in range(len(loc)):
        for n in range(len(x)):
            o = known[n]
            if o.any():
                table[k, n] = stats.multivariate_normal(loc[k, 0, o], covariance[k, 0][np.ix_(o, o)]).logpdf(x[n, o])
    return torch.from_numpy(table)


def conditional(loc, covariance, x, known):
    """Mean and covariance of one row given its known entries, by solving the ragged system."""
    o, m = known, ~known
    mean, left = x.clone(), torch.zeros_like(covariance)
    if m.any():
        gain = torch.linalg.solve(covariance[o][:, o], covariance[o][:, m]).T
        mean[m] = loc[m] + gain @ (x[o] - loc[o])
        left[torch.outer(m, m)] = (covariance[m][:, m] - gain @ covariance[o][:, m]).flatten()
    return mean, left


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_density_is_that_of_the_dense_marginal(dtype, tolerance):
    loc, covariance, x, known = problem(dtype=dtype)
    table = PartialMultivariateNormal(loc, covariance, known).log_prob(x)
    assert table.dtype == dtype
    assert table.shape == (3, 40)
    torch.testing.assert_close(
        table.double(), dense(*(t.double() for t in (loc, covariance, x)), known), rtol=tolerance, atol=tolerance
    )
    assert torch.equal(table[:, 0], torch.zeros(3, dtype=dtype))


def test_density_is_the_integral_over_what_is_missing():
    loc, covariance, x, _ = problem(n=3, components=1, d=2)
    whole = stats.multivariate_normal(loc[0, 0].numpy(), covariance[0, 0].numpy())
    for row, j in zip(x, (0, 1, 0), strict=True):
        known = torch.ones(2, dtype=torch.bool)
        known[j] = False

        def joint(value, row=row, j=j):
            return whole.pdf(torch.where(torch.arange(2) == j, value, row).numpy())

        spread = 12 * float(covariance[0, 0, j, j].sqrt())
        centre = float(loc[0, 0, j])
        integral, _ = integrate.quad(joint, centre - spread, centre + spread, epsabs=1e-13, epsrel=1e-11, limit=200)
        density = PartialMultivariateNormal(loc[0, 0], covariance[0, 0], known).log_prob(row)
        assert float(density) == pytest.approx(np.log(integral), abs=1e-8)


def test_complete_rows_are_those_of_the_multivariate_normal():
    loc, covariance, x, known = problem(missing=-1.0)
    known[0] = True
    ours = PartialMultivariateNormal(loc, covariance, known).log_prob(x)
    torch.testing.assert_close(ours, torch.distributions.MultivariateNormal(loc, covariance).log_prob(x))


def test_unknown_entries_do_not_matter():
    loc, covariance, x, known = problem()
    law = PartialMultivariateNormal(loc, covariance, known)
    other = torch.where(known, x, 1e6)
    assert torch.equal(law.log_prob(x), law.log_prob(other))
    assert torch.equal(law.conditional_mean(x), law.conditional_mean(other))


@pytest.mark.parametrize("layout", ["components by rows", "a component per row", "tied", "one row", "one component"])
def test_every_layout_of_rows_and_parameters(layout):
    loc, covariance, x, known = problem()
    if layout == "a component per row":
        z = torch.randint(3, (40,))
        loc, covariance = loc[z, 0], covariance[z, 0]
    elif layout == "tied":
        covariance = covariance[0, 0]
    elif layout == "one row":
        x, known = x[5:6], known[5:6]
    elif layout == "one component":
        loc, covariance = loc[:1], covariance[:1]
    law = PartialMultivariateNormal(loc, covariance, known)
    d = x.shape[-1]
    batch = law.batch_shape
    flat_loc, flat_x = (t.expand(*batch, d).reshape(-1, d) for t in (loc, x))
    flat_known, flat_covariance = (
        known.expand(*batch, d).reshape(-1, d),
        covariance.expand(*batch, d, d).reshape(-1, d, d),
    )
    every = [conditional(*row) for row in zip(flat_loc, flat_covariance, flat_x, flat_known, strict=True)]
    mean, left = (torch.stack(part) for part in zip(*every, strict=True))
    torch.testing.assert_close(law.conditional_mean(x), mean.reshape(*batch, d))
    weights, centre = torch.rand(batch, dtype=x.dtype), torch.randn(d, dtype=x.dtype)
    total, first, second = law.expected_moments(x, weights, centre)
    w = weights.reshape(-1)
    centred = mean - centre
    by_batch = (
        (total, w),
        (first, w[:, None] * centred),
        (second, w[:, None, None] * (centred[:, :, None] * centred[:, None, :] + left)),
    )
    for ours, amount in by_batch:
        amount = amount.reshape(*batch, *amount.shape[1:])
        over = [i for i in range(len(batch)) if ours.shape[i] == 1]
        torch.testing.assert_close(ours, amount.sum(over, keepdim=True) if over else amount)
    if len(batch) == 2:
        assert total.shape == (len(loc), 1)


def test_many_patterns_in_small_tiles(monkeypatch):
    """Batches of tiles, padding and patterns cut into several tiles change nothing."""
    loc, covariance, x, known = problem(n=300, d=6)
    known[50:150] = known[50]
    law = PartialMultivariateNormal(loc, covariance, known)
    weights = torch.rand(3, 300)
    whole = (law.log_prob(x), law.conditional_mean(x), *law.expected_moments(x, weights, x[0]))
    monkeypatch.setattr(partial_multivariate_normal, "BUDGET", 200)
    pieces = (law.log_prob(x), law.conditional_mean(x), *law.expected_moments(x, weights, x[0]))
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_more_columns_than_bits_in_a_word():
    torch.manual_seed(0)
    known = torch.rand(50, 70) > 0.02
    x, loc, covariance = torch.randn(50, 70).double(), torch.zeros(1, 1, 70).double(), torch.eye(70).double()
    table = PartialMultivariateNormal(loc, covariance, known).log_prob(x)
    terms = torch.where(known, torch.distributions.Normal(0.0, 1.0).log_prob(x), 0.0)
    torch.testing.assert_close(table[0], terms.sum(-1))


def test_gradients():
    loc, covariance, x, known = problem(n=12, components=2, d=3)
    root = torch.linalg.cholesky(covariance)

    def density(loc, root):
        return PartialMultivariateNormal(loc, root @ root.mT, known, validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(density, (loc.requires_grad_(), root.requires_grad_()))


def test_samples_are_whole_rows():
    loc, covariance, _, known = problem(n=2)
    law = PartialMultivariateNormal(loc, covariance, known)
    draws = law.sample((20_000,))
    assert draws.shape == (20_000, 3, 2, 4)
    error = (covariance.diagonal(dim1=-2, dim2=-1) / 20_000).sqrt()
    assert bool(((draws.mean(0) - loc).abs() < 5 * error).all())
    assert law.expand((5, 3, 2)).sample().shape == (5, 3, 2, 4)
    assert torch.equal(
        law.expand((5, 3, 2)).log_prob(torch.zeros(4).double())[2], law.log_prob(torch.zeros(4).double())
    )
    assert torch.equal(law.mean, loc.expand(3, 2, 4))


def test_errors():
    with pytest.raises(ValueError, match=r"expected a covariance of shape \(2, 2\) and boolean known"):
        distributions.PartialMultivariateNormal(torch.zeros(2), torch.eye(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="Pass known"):
        distributions.PartialMultivariateNormal(torch.zeros(2), torch.eye(2), torch.ones(2))
