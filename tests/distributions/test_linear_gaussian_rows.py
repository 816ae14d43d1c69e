"""The law of rows with factors summed out, against the dense normal law."""

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_lvm.distributions import LinearGaussianRows


def law(common=False, dtype=torch.float64):
    torch.manual_seed(0)
    loc, weight = torch.randn(5, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    return LinearGaussianRows(
        loc, weight, torch.tensor(0.7, dtype=dtype) if common else torch.rand(5, dtype=dtype) + 0.2
    )


def covariance(fn):
    return fn.weight @ fn.weight.mT + fn.noise_scale.square().expand(5).diag()


def rows(share=0.3):
    torch.manual_seed(1)
    x = 2 * torch.randn(40, 5, dtype=torch.float64)
    x = torch.where(torch.rand(40, 5) < share, torch.nan, x)
    x[3] = torch.nan
    return x


@pytest.mark.parametrize("common", [False, True])
def test_density_is_that_of_the_known_entries(common):
    fn, x = law(common), rows()
    for row, value in zip(x, fn.log_prob(x), strict=True):
        known = ~row.isnan()
        expected = torch.zeros(()).double()
        if known.any():
            expected = MultivariateNormal(fn.loc[known], covariance(fn)[known][:, known]).log_prob(row[known])
        torch.testing.assert_close(value, expected)


def test_gradients_are_those_of_the_dense_law():
    fn = law()
    leaves = [part.requires_grad_() for part in (fn.loc, fn.weight, fn.noise_scale)]
    x = torch.nan_to_num(rows())
    ours = torch.autograd.grad(fn.log_prob(x).sum(), leaves)
    theirs = torch.autograd.grad(MultivariateNormal(fn.loc, covariance(fn)).log_prob(x).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_moments_and_draws():
    fn = law()
    torch.manual_seed(2)
    draws = fn.expand([3]).sample((40_000,))
    assert draws.shape == (40_000, 3, 5)
    draws = draws.reshape(-1, 5)
    torch.testing.assert_close(draws.mean(0), fn.mean, rtol=0, atol=5 * float(fn.variance.max() / len(draws)) ** 0.5)
    torch.testing.assert_close(draws.mT.cov(), covariance(fn), rtol=0.03, atol=0.05)
    torch.testing.assert_close(fn.variance, covariance(fn).diagonal())


def test_factors_given_rows():
    fn, x = law(), rows()
    mean = fn.latent_mean(x)
    known = ~x[0].isnan()
    gain = fn.weight[known].mT @ torch.linalg.inv(covariance(fn)[known][:, known])
    torch.testing.assert_close(mean[0], gain @ (x[0] - fn.loc)[known])
    torch.testing.assert_close(mean[3], torch.zeros(2).double())
    torch.manual_seed(3)
    draws = fn.posterior_sample(x[:1], 20_000)[:, 0]
    spread = torch.eye(2).double() - gain @ fn.weight[known]
    torch.testing.assert_close(draws.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(draws.mT.cov(), spread, rtol=0, atol=0.03)
    torch.testing.assert_close(fn.conditional_mean(x), fn.loc + mean @ fn.weight.mT)


def test_single_precision_and_a_plate():
    fn = law(dtype=torch.float32)
    with pyro.plate("data", 40):
        value = pyro.sample("x", fn, obs=rows().float())
    assert value.shape == (40, 5)
    assert fn.log_prob(rows().float()).dtype == torch.float32


def laws(batch, own_noise=True):
    torch.manual_seed(4)
    loc, weight = torch.randn(*batch, 5).double(), torch.randn(*batch, 5, 2).double()
    return loc, weight, (torch.rand(*batch, 5 if own_noise else 1) + 0.2).double()


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("common", [False, True])
def test_batches_are_scored_law_by_law(share, common):
    parts, x = laws((3, 1), not common), rows(share)
    fn = LinearGaussianRows(*parts).expand([3, 40])
    table = fn.log_prob(x)
    assert table.shape == (3, 40)
    single = [LinearGaussianRows(*(part[c, 0] for part in parts)) for c in range(3)]
    for found, one in zip(table, single, strict=True):
        torch.testing.assert_close(found, one.log_prob(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fn.latent_mean(x), torch.stack([one.latent_mean(x) for one in single]))
    torch.testing.assert_close(fn.conditional_mean(x)[1], single[1].conditional_mean(x))
    z = torch.arange(40) % 3
    own = LinearGaussianRows(*(part[z, 0] for part in parts))
    torch.testing.assert_close(own.log_prob(x), table[z, torch.arange(40)])
    torch.testing.assert_close(own.latent_mean(x), fn.latent_mean(x)[z, torch.arange(40)])


def test_batches_with_little_noise_far_away_keep_their_decimals():
    loc, weight, noise = laws((3, 1))
    parts, x = (loc + 1e3, weight, 1e-5 * noise), rows(0.0) + 1e3
    table = LinearGaussianRows(*parts).log_prob(x)
    for c, found in enumerate(table):
        one = LinearGaussianRows(*(part[c, 0] for part in parts))
        torch.testing.assert_close(found, one.log_prob(x), rtol=1e-12, atol=0)


def test_draws_of_batches():
    parts, z = laws((3,)), torch.arange(60_000) % 3
    torch.manual_seed(5)
    draws = LinearGaussianRows(*(part[z] for part in parts)).sample()
    for c in range(3):
        one = LinearGaussianRows(*(part[c] for part in parts))
        torch.testing.assert_close(draws[z == c].mT.cov(), covariance(one), rtol=0.05, atol=0.1)
        torch.testing.assert_close(draws[z == c].mean(0), one.mean, rtol=0, atol=0.1)
    x = torch.zeros(3, 5).double()
    means = LinearGaussianRows(*parts).posterior_sample(x, 20_000).mean(0)
    torch.testing.assert_close(means, LinearGaussianRows(*parts).latent_mean(x), rtol=0, atol=0.03)


SHAPES = [((5,), (4, 2), (5,)), ((5,), (5,), (5,)), ((2, 5), (3, 5, 2), ()), ((5,), (5, 2), (4,)), ((), (5, 2), ())]


@pytest.mark.parametrize(("loc", "weight", "noise"), SHAPES)
def test_shapes_that_do_not_fit(loc, weight, noise):
    with pytest.raises(ValueError, match="one line of weight for each column"):
        LinearGaussianRows(torch.zeros(loc), torch.zeros(weight), torch.ones(noise))


def test_values_that_do_not_fit():
    with pytest.raises(ValueError, match=r"expected values of shape \(..., 5\); got \(3, 4\)"):
        law().log_prob(torch.zeros(3, 4))


def test_batches_of_values_that_do_not_fit():
    law = LinearGaussianRows(torch.zeros(3, 2), torch.ones(2, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"expected values for a batch of laws of shape \(3,\); got \(5,\)"):
        law.log_prob(torch.zeros(5, 2))


def test_numbers_instead_of_tensors():
    with pytest.raises(
        TypeError, match="expected loc, weight and noise_scale to be tensors; got Tensor, Tensor, float"
    ):
        LinearGaussianRows(torch.zeros(2), torch.ones(2, 1), 1.0)
