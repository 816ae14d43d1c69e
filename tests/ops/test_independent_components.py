"""Relative quasi-Newton steps: gradients and maxima against automatic differentiation and a plain search."""

import math
from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch

from pyro_lvm.distributions.sources import SOURCES, SourceDensity, source_law
from pyro_lvm.ops.independent_components import climb
from pyro_lvm.ops.source_scores import student_t_information
from pyro_lvm.ops.whitening import dependent_columns, random_rotation, whitening

DOUBLE = torch.zeros((), dtype=torch.float64)


def law_of(name, freedom=None):
    if name == "student-t" and freedom is None:
        freedom = torch.tensor([3.0, 6.0, 5.0], dtype=torch.float64)
    return source_law("test", name, DOUBLE, freedom)


def mixed(rows=400, seed=0):
    torch.manual_seed(seed)
    return torch.distributions.Laplace(0.0, 1.0).sample((rows, 3)).double() @ torch.randn(3, 3).double() + 0.5


def loss_of(law, y, matrix, shift, weights=None):
    """Minus the mean log-density of rows y under h = M y + t, written down plainly."""
    rows = law.log_prob(y @ matrix.mT + shift).sum(-1) + torch.linalg.slogdet(matrix)[1]
    return -rows.mean() if weights is None else -(weights * rows).sum() / weights.sum()


@pytest.mark.parametrize("name", ["logistic", "sech", "student-t"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ends_where_the_likelihood_is_flat(name, weighted):
    y = mixed()
    weights = torch.arange(len(y)).remainder(3).double() if weighted else None
    law = law_of(name)
    found = climb(y, SourceDensity(law), weights=weights, steps=200)
    matrix, shift = found.matrix.requires_grad_(), found.shift.requires_grad_()
    loss = loss_of(law, y, matrix, shift, weights)
    for gradient in torch.autograd.grad(loss, [matrix, shift]):
        assert float(gradient.abs().max()) < 1e-6
    eye = torch.eye(3).double()
    assert found.loss == pytest.approx(float(loss_of(law, y, eye, torch.zeros(3).double(), weights)), rel=1e-12)
    assert found.steps < 60


@pytest.mark.parametrize("name", SOURCES)
def test_no_step_falls(name):
    """Of rows with two peaks in every direction of a source, where full steps overshoot."""
    torch.manual_seed(0)
    y = (torch.randn(200, 3).sign() + 0.05 * torch.randn(200, 3)).double() @ torch.randn(3, 3).double()
    law, matrix, shift = law_of(name), torch.eye(3).double(), torch.zeros(3).double()
    losses = [float(loss_of(law, y, matrix, shift))]
    for _ in range(30):
        found = climb(y @ matrix.mT + shift, SourceDensity(law), steps=2)
        matrix, shift = found.matrix @ matrix, found.matrix @ shift + found.shift
        losses.append(float(loss_of(law, y, matrix, shift)))
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    assert losses[-1] < losses[0]


def test_degrees_of_freedom_are_at_the_maximum():
    """Against automatic differentiation in all of map, shift and degrees of freedom."""
    torch.manual_seed(0)
    y = dist.StudentT(4.0, 0.0, 1.0).sample((4000, 2)).double() @ torch.tensor([[1.0, 0.4], [-0.3, 1.0]]).double()
    start = torch.tensor([10.0, 10.0], dtype=torch.float64)
    found = climb(y, SourceDensity(law_of("student-t", start)), freedom=start, steps=200)
    leaves = [part.detach().requires_grad_() for part in (found.matrix, found.shift, found.freedom)]
    loss = loss_of(law_of("student-t", leaves[2]), y, *leaves[:2])
    for gradient in torch.autograd.grad(loss, leaves):
        assert float(gradient.abs().max()) < 1e-6
    assert bool(((found.freedom > 3) & (found.freedom < 5.5)).all())


def test_degrees_of_freedom_of_normal_rows_stop_at_the_limit():
    torch.manual_seed(0)
    y, start = torch.randn(2000, 1).double(), torch.tensor([10.0]).double()
    y = y - y.mean()
    y = y.sign() * y.abs().clamp_max(2.5)
    found = climb(y, SourceDensity(law_of("student-t", start)), freedom=start, steps=100)
    assert float(found.freedom) == pytest.approx(200.0)


def test_a_kink_does_not_hold_a_point_far_from_the_maximum():
    """One column: the maximum of Laplace's likelihood is the median and the mean distance from it."""
    torch.manual_seed(0)
    y = torch.distributions.Laplace(3.0, 2.0).sample((1001, 1)).double()
    found = climb(y, SourceDensity(law_of("laplace")), steps=50)
    ended = y @ found.matrix.mT + found.shift
    law = law_of("laplace")
    median = y.median()
    scale = (y - median).abs().mean() / law.scale
    best = -law.log_prob((y - median) / scale).mean() + scale.log()
    reached = -law.log_prob(ended).mean() - found.matrix.det().log()
    assert float(reached - best) * len(y) < 0.05  # nats of all rows


@pytest.mark.parametrize("name", SOURCES)
def test_scores_are_derivatives(name):
    y = torch.linspace(-30, 30, 301, dtype=torch.float64)[:, None].expand(-1, 3) + 0.01
    law = law_of(name)
    at = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(at).sum(), at)
    found = SourceDensity(law)(y, None)
    torch.testing.assert_close(found.log_prob, law.log_prob(y))
    torch.testing.assert_close(found.score, -slope)


def test_slope_by_the_logarithm_of_the_degrees_of_freedom():
    y = torch.linspace(-9, 9, 30, dtype=torch.float64)[:, None].expand(-1, 3)
    log_freedom = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64, requires_grad=True)
    law = law_of("student-t", log_freedom.exp())
    slopes = torch.autograd.functional.jacobian(
        lambda v: law_of("student-t", v.exp()).log_prob(y), log_freedom.detach()
    )
    expected = slopes.diagonal(dim1=1, dim2=2)
    found = SourceDensity(law)(y, log_freedom.detach().exp())
    torch.testing.assert_close(found.slope, expected)


def test_a_law_without_a_formula_has_the_same_scores():
    y = mixed()

    class Other(dist.Logistic):
        pass

    ours, plain = law_of("logistic"), Other(torch.zeros(()).double(), torch.tensor(math.sqrt(3) / math.pi).double())
    one, other = SourceDensity(ours)(y, None), SourceDensity(dist.TransformedDistribution(plain, []))(y, None)
    torch.testing.assert_close(one.score, other.score)
    torch.testing.assert_close(one.log_prob, other.log_prob)


def test_whitening_is_a_root_of_the_covariance_in_any_units():
    x = mixed()
    mean, root, values = whitening(x)
    covariance = (x - mean).mT @ (x - mean) / len(x)
    torch.testing.assert_close(root @ root.mT, covariance)
    units = torch.tensor([1e-3, 1.0, 1e6], dtype=torch.float64)
    torch.testing.assert_close(whitening(x * units)[1].abs(), root.abs() * units[:, None])
    assert bool((values.diff() <= 0).all())
    assert float(values.sum()) == pytest.approx(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_columns_are_counted(dtype):
    x = mixed().to(dtype)
    assert dependent_columns(whitening(x)[2], dtype) == 0
    near = x[:, :1] + 1e-3 * x[:, 1:2] * torch.randn(len(x), 1).to(dtype)
    assert dependent_columns(whitening(torch.cat([x, near], 1))[2], dtype) == 0
    copy = torch.cat([x, 1e3 * x[:, :1] - 2 * x[:, 1:2]], 1)
    assert dependent_columns(whitening(copy)[2], dtype) == 1
    assert dependent_columns(whitening(x[:3])[2], dtype) == 1


def test_rotations_follow_the_seed_and_leave_the_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = random_rotation(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one @ one.mT, torch.eye(4).double())
    torch.manual_seed(6)
    assert not torch.allclose(one, random_rotation(4))


def test_information_of_student_t_is_the_expected_hessian():
    """By a sum over a grid, of second derivatives by automatic differentiation."""
    freedom = torch.tensor([1.5, 6.0, 40.0], dtype=torch.float64)
    found = student_t_information(freedom, torch.zeros(3, dtype=torch.bool))
    x = torch.linspace(-3000, 3000, 600_001, dtype=torch.float64)

    for i, v in enumerate(freedom):

        def loss(at, v=v):
            law = dist.StudentT(v * at[1].exp(), 0.0, (-at[0]).exp())
            density = dist.StudentT(v, 0.0, 1.0).log_prob(x).exp() * 0.01
            return -(density * law.log_prob(x)).sum()

        expected = torch.autograd.functional.hessian(loss, torch.zeros(2, dtype=torch.float64))
        if i < 2:
            torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-4)
        else:  # so little that a floor stands in for it
            assert float(found[i, 1, 1]) >= float(expected[1, 1])
    apart = student_t_information(freedom, torch.ones(3, dtype=torch.bool))
    assert bool((apart[:, 0, 1] == 0).all())
