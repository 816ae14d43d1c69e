"""Steps on the bounds of rows: exact where the posterior is normal, at a known optimum where it is not."""

import math

import pytest
import torch

from pyro_lvm.guides.row_search import climb

LOC = torch.randn(30, 2, generator=torch.Generator().manual_seed(1)).double() * 3
PRECISION = torch.tensor([0.3, 40.0]).double()


def normal(values):
    return -(PRECISION * (values - LOC).square()).sum() / 2


@pytest.mark.parametrize("start", [0.0, 3.0, -4.0])
def test_it_ends_at_a_normal_posterior(start):
    place = torch.cat([torch.zeros(30, 2), torch.full((30, 2), start)], -1).double()
    loc, log_scale = climb(normal, place, 100, 0.4).chunk(2, -1)
    torch.testing.assert_close(loc, LOC, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_scale, -PRECISION.log().expand(30, 2) / 2, atol=1e-6, rtol=0)


def test_a_correlated_posterior_has_the_mean_field_optimum():
    precision = torch.tensor([[3.0, 2.0], [2.0, 5.0]]).double()
    place = torch.zeros(2000, 4).double()

    def correlated(values):
        return -((values - 1) @ precision * (values - 1)).sum() / 2

    loc, log_scale = climb(correlated, place, 200, 0.2, landing=True).chunk(2, -1)
    error = 4 / math.sqrt(2000)  # of the mean over independent searches
    assert float((loc.mean(0) - 1).abs().max()) < error * float(loc.std(0).max())
    assert float((log_scale.mean(0) + precision.diagonal().log() / 2).abs().max()) < 0.01


def test_the_rate_of_a_count_has_the_optimum_of_its_bound():
    """log p = a v - b exp(v): the bound a m - b exp(m + s^2 / 2) + log s is greatest where s^2 = 1 / a."""
    a, b = torch.tensor([1.5, 4.0, 40.0]).double().repeat_interleave(1000).unsqueeze(-1), 2.0

    def gamma(values):
        return (a * values - b * values.exp()).sum()

    loc, log_scale = climb(gamma, torch.zeros(3000, 2).double(), 200, 0.1, landing=True).chunk(2, -1)
    best = (a / b).log() - 1 / (2 * a)
    for found, expected in ((loc, best), (log_scale, -a.log() / 2)):
        gap = (found - expected).reshape(3, 1000).mean(1)
        assert float(gap.abs().max()) < 0.02


def test_what_counts_nothing_stays():
    weight = torch.tensor([1.0, 0.0]).double()

    def first(values):
        return -values[:, 0].square().sum() * 2

    place = climb(first, torch.zeros(5, 4).double(), 50, 0.4, weight=weight)
    assert bool((place[:, [1, 3]] == 0).all())
    torch.testing.assert_close(place[:, 2], torch.full((5,), 0.5).double().log(), atol=1e-5, rtol=0)


def test_rows_without_a_finite_gradient_rest():
    def broken(values):
        return normal(values) + (values[3] * math.inf).sum()

    place = climb(broken, torch.zeros(30, 4).double(), 5, 0.4)
    assert bool((place[3] == 0).all())
    assert bool((place[[0, 1, 2, 4]] != 0).all())
    assert bool(place.isfinite().all())
