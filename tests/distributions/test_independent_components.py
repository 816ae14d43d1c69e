"""Laws of independent sources and of their linear maps: dense change of variables, integrals, draws."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import AffineTransform, TransformedDistribution

from pyro_lvm.distributions import HyperbolicSecant, IndependentComponents
from pyro_lvm.distributions.sources import SOURCES, SourceDensity, check_source, is_learned, source_law

DOUBLE = torch.zeros((), dtype=torch.float64)
WEIGHT = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
LOC = torch.tensor([0.5, -1.0], dtype=torch.float64)


def law_of(name):
    return source_law("test", name, DOUBLE, 5.0 if name == "student-t" else None)


@pytest.mark.parametrize("name", SOURCES)
def test_named_sources_integrate_to_one_and_have_their_scale(name):
    law = law_of(name)
    x = torch.linspace(-400, 400, 1_600_001, dtype=torch.float64)
    density = law.log_prob(x).exp()
    step = float(x[1] - x[0])
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-6)
    expected = 5 / 3 if name == "student-t" else 1.0
    assert float((density * x.square()).sum() * step) == pytest.approx(expected, rel=1e-4)
    assert float(law.variance) == pytest.approx(expected)


@pytest.mark.parametrize("name", SOURCES)
def test_scores_are_slopes_of_log_densities(name):
    y = torch.linspace(-6, 6, 40, dtype=torch.float64).reshape(20, 2).requires_grad_()
    flat = torch.tensor([1.0, 0.0]).double()
    law = source_law("test", name, DOUBLE, 5.0, flat)
    (slope,) = torch.autograd.grad(law.log_prob(y).sum(), y)
    found = SourceDensity(law)(y.detach(), None)
    torch.testing.assert_close(found.score, -slope)
    torch.testing.assert_close(found.log_prob, law.log_prob(y.detach()))


def test_hyperbolic_secant_is_scipys():
    law = HyperbolicSecant(torch.tensor(0.3).double(), torch.tensor(2.0).double())
    theirs = stats.hypsecant(loc=0.3, scale=4 / math.pi)
    x = torch.linspace(-40, 40, 41, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x), torch.from_numpy(theirs.logpdf(x.numpy())))
    torch.testing.assert_close(law.cdf(x), torch.from_numpy(theirs.cdf(x.numpy())))
    p = torch.linspace(0.001, 0.999, 21, dtype=torch.float64)
    torch.testing.assert_close(law.icdf(p), torch.from_numpy(theirs.ppf(p.numpy())))
    assert float(law.entropy()) == pytest.approx(theirs.entropy(), rel=1e-6)
    assert (float(law.mean), float(law.variance)) == (pytest.approx(0.3), pytest.approx(theirs.var()))
    torch.manual_seed(0)
    assert stats.kstest(law.sample((20_000,)).numpy(), theirs.cdf).pvalue > 1e-4
    wide = law.expand((2, 3))
    assert wide.batch_shape == (2, 3)
    assert wide.rsample((4,)).shape == (4, 2, 3)
    assert bool(torch.isfinite(law.log_prob(torch.tensor([-1e6, 1e6]).double())).all())


@pytest.mark.parametrize("name", SOURCES)
def test_density_is_the_dense_change_of_variables(name):
    """Against the density of sources at solutions of the linear system, one row after another, by numpy."""
    law = IndependentComponents(law_of(name), WEIGHT, LOC)
    torch.manual_seed(0)
    x = 3 * torch.randn(20, 2).double()
    expected = []
    for row in x:
        h = np.linalg.solve(WEIGHT.numpy(), (row - LOC).numpy())
        expected.append(
            sum(float(law_of(name).log_prob(torch.tensor(value))) for value in h)
            - math.log(abs(np.linalg.det(WEIGHT.numpy())))
        )
    torch.testing.assert_close(law.log_prob(x), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(law.latent_mean(x) @ WEIGHT.mT + LOC, x)


def test_of_one_column_it_is_an_affine_map():
    law = IndependentComponents(law_of("logistic"), torch.tensor([[-3.0]]).double(), torch.tensor([2.0]).double())
    theirs = TransformedDistribution(law_of("logistic"), [AffineTransform(2.0, -3.0)])
    x = torch.linspace(-5, 9, 15, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(x[:, None]), theirs.log_prob(x))


@pytest.mark.parametrize("name", ["laplace", "logistic", "sech"])
def test_density_integrates_to_one_on_a_grid(name):
    law = IndependentComponents(law_of(name), WEIGHT, LOC)
    axis = torch.linspace(-35, 35, 1401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    assert float(law.log_prob(grid).exp().sum()) * 0.05**2 == pytest.approx(1, abs=1e-3)


def test_draws_have_its_moments_and_gradients():
    law = IndependentComponents(law_of("laplace"), WEIGHT.clone().requires_grad_(), LOC)
    torch.manual_seed(0)
    draws = law.rsample((200_000,))
    assert draws.requires_grad
    assert not law.sample((2,)).requires_grad
    torch.testing.assert_close(draws.mean(0), law.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), law.variance, atol=0, rtol=0.02)
    torch.testing.assert_close(draws.T.cov(), WEIGHT @ WEIGHT.mT, atol=0.03, rtol=0.02)


def test_batches_and_sources_of_their_own():
    each = dist.StudentT(torch.tensor([3.0, 8.0]).double(), torch.zeros(()).double(), torch.ones(()).double())
    law = IndependentComponents(each, WEIGHT, LOC)
    wide = law.expand((4,))
    assert (wide.batch_shape, wide.event_shape) == ((4,), (2,))
    assert wide.sample((3,)).shape == (3, 4, 2)
    assert wide.mean.shape == (4, 2)
    assert wide.log_prob(torch.zeros(4, 2).double()).shape == (4,)
    with pytest.raises(ValueError, match="of each of 2"):
        IndependentComponents(dist.Laplace(torch.zeros(3), 1.0), WEIGHT, LOC)
    with pytest.raises(ValueError, match=r"weight of shape \(d, d\)"):
        IndependentComponents(law_of("sech"), WEIGHT[:1], LOC)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("gauss", "laplace, logistic, student-t, sech"),
        (3, "laplace, logistic"),
        (dist.Exponential(1.0), "over all real numbers"),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), "univariate"),
        (dist.Poisson(1.0), "over all real numbers"),
    ],
)
def test_other_sources_are_refused(source, why):
    with pytest.raises(ValueError, match=why):
        check_source("Model", source)


def test_sources_of_users_take_the_type_of_the_rows():
    for source in (dist.Gumbel(0.0, 1.0), torch.distributions.Laplace(0.0, 2.0), lambda: dist.Cauchy(0.0, 1.0)):
        check_source("Model", source)
        law = source_law("Model", source, DOUBLE)
        assert law.rsample((2,)).dtype == torch.float64
        assert law.log_prob(torch.zeros(2).double()).dtype == torch.float64
        assert law.expand([2, 3]).to_event(1).event_shape == (3,)
        assert not is_learned(law)
    with pytest.raises(ValueError, match="Let the function return a distribution"):
        source_law("Model", lambda: 3, DOUBLE)
    assert is_learned(dist.Laplace(0.0, torch.ones((), requires_grad=True)))
    skew = TransformedDistribution(dist.Normal(0.0, torch.ones((), requires_grad=True)), [AffineTransform(0.0, 1.0)])
    assert is_learned(skew)
