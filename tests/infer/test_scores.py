"""Densities that closed forms offer the engine in place of `log_prob`: the same numbers, in less memory."""

import pyro.distributions as dist
import pytest
import torch

from pyro_lvm.distributions import PartialMultivariateNormal
from pyro_lvm.infer.log_density import log_density
from pyro_lvm.infer.m_step import closed_form
from pyro_lvm.infer.pattern_products import PatternProducts

CELLS = {"own": (4, 1), "tied": (1, 1)}


def laws(kind, n=400, d=5):
    """A t law, a normal with gaps, and rows; the rows far from zero."""
    loc = 1e3 + torch.randn(4, 1, d).double()
    root = torch.randn(*CELLS[kind], d, d).double().tril() * 0.3 + torch.eye(d).double()
    known = (torch.rand(7, d) < 0.6)[torch.randint(7, (n,))]
    known[:40] = False
    x = 1e3 + torch.randn(n, d).double()
    df = torch.tensor([1.0, 3.0, 10.0, 100.0]).double().unsqueeze(-1)
    return dist.MultivariateStudentT(df, loc, root), PartialMultivariateNormal(loc, root @ root.mT, known), x


def in_type(law, dtype):
    if isinstance(law, PartialMultivariateNormal):
        return PartialMultivariateNormal(law.loc.to(dtype), law.covariance_matrix.to(dtype), law.known)
    return dist.MultivariateStudentT(law.df.to(dtype), law.loc.to(dtype), law.scale_tril.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_a_score_is_the_log_density(kind, dtype):
    *both, x = laws(kind)
    for law in both:
        single = in_type(law, dtype)
        score = closed_form(single).score(single, x.to(dtype))
        assert score.dtype == dtype
        assert score.shape == (4, 400)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-2  # of 1e3 in float32
        torch.testing.assert_close(score, single.log_prob(x.to(dtype)), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(log_density(single, x.to(dtype)), score)


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_moments_by_products_are_those_by_tiles(kind):
    _, law, x = laws(kind)
    weights, centre = torch.rand(4, 400).double(), torch.full((5,), 900.0).double()
    products = PatternProducts.of(law, x)
    for found, expected in zip(
        products.expected_moments(weights, centre), law.expected_moments(x, weights, centre), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)


def test_many_patterns_or_rows_with_parameters_of_their_own_are_left_to_tiles():
    loc, covariance, x = torch.zeros(1, 8), torch.eye(8), torch.randn(100, 8)
    assert PatternProducts.of(PartialMultivariateNormal(loc, covariance, torch.rand(100, 8) < 0.5), x) is None
    whole = torch.ones(100, 8, dtype=torch.bool)
    assert PatternProducts.of(PartialMultivariateNormal(loc.expand(100, 8).clone(), covariance, whole), x) is None
    assert PatternProducts.of(PartialMultivariateNormal(loc, covariance, whole), x) is not None


@torch.no_grad()
def test_far_from_the_centre_the_density_is_left_to_the_difference():
    known = torch.ones(64, 2, dtype=torch.bool)
    law = PartialMultivariateNormal(torch.full((2,), 1e8).double(), torch.eye(2).double(), known)
    x = torch.cat([torch.zeros(32, 2), torch.full((32, 2), 1e8)]).double()
    assert closed_form(law).score(law, x) is None
    torch.testing.assert_close(log_density(law, x), law.log_prob(x))


def test_a_t_law_under_a_gradient_keeps_its_own_density():
    law, _, x = laws("own")
    df = law.df.clone().requires_grad_()
    density = log_density(dist.MultivariateStudentT(df, law.loc, law.scale_tril), x)
    assert density.requires_grad
