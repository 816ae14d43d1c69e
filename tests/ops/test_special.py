"""Inverses of special functions against scipy, over many orders of magnitude."""

import mpmath
import numpy as np
import pytest
import scipy.special
import torch

from pyro_lvm.ops import special

WIDE = torch.logspace(-8, 7.9, 400, dtype=torch.float64)


def test_inverse_digamma():
    y = torch.as_tensor(scipy.special.digamma(WIDE.numpy()))
    np.testing.assert_allclose(special.inverse_digamma(y), WIDE, rtol=1e-12)


def test_log_minus_digamma_and_its_inverse():
    near = WIDE[WIDE < 10]
    expected = near.log().numpy() - scipy.special.digamma(near.numpy())
    np.testing.assert_allclose(special.log_minus_digamma(near), expected, rtol=1e-12)
    far = torch.logspace(2, 7, 20, dtype=torch.float64)
    series = 0.5 / far + 1 / (12 * far**2) - 1 / (120 * far**4)
    np.testing.assert_allclose(special.log_minus_digamma(far), series, rtol=1e-12)
    np.testing.assert_allclose(special.gamma_concentration(special.log_minus_digamma(WIDE)), WIDE, rtol=1e-12)


def test_log_gamma_remainder():
    with mpmath.workdps(50):
        exact = [float(mpmath.loggamma(v) - v * mpmath.log(v) + v) for v in map(mpmath.mpf, WIDE.tolist())]
    np.testing.assert_allclose(special.log_gamma_remainder(WIDE), exact, rtol=1e-12, atol=2e-14)


def test_inverse_bessel_ratio():
    ratio = torch.as_tensor(scipy.special.i1e(WIDE.numpy()) / scipy.special.i0e(WIDE.numpy()))
    error = (special.inverse_bessel_ratio(ratio) / WIDE - 1).abs()
    # a ratio near one holds its distance from one to a relative precision of 2 kappa eps only, here rounded thrice
    assert bool((error <= 1e-12 + 3 * 2.3e-16 * 2 * WIDE).all())


@pytest.mark.parametrize("dimension", [2, 3, 40])
@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 10.0, 100.0])
def test_dirichlet_concentration(dimension, size):
    a = size * (torch.rand(100, dimension, dtype=torch.float64) + 1e-3)
    mean_log = torch.digamma(a) - torch.digamma(a.sum(-1, keepdim=True))
    np.testing.assert_allclose(special.dirichlet_concentration(mean_log), a, rtol=1e-11)


def test_ends_and_missing_entries():
    nan = torch.tensor([float("nan")], dtype=torch.float64)
    cap = special.LARGEST_CONCENTRATION
    assert special.gamma_concentration(torch.zeros(1)).item() == pytest.approx(cap)
    assert special.inverse_bessel_ratio(torch.tensor([-0.5, 0.0])).tolist() == [0.0, 0.0]
    assert special.inverse_bessel_ratio(torch.tensor([1.0, 1.1])).tolist() == pytest.approx([cap, cap])
    assert special.dirichlet_concentration(torch.full((1, 2), 0.5).log()).sum().item() == pytest.approx(cap)
    for function in (special.gamma_concentration, special.inverse_digamma, special.inverse_bessel_ratio):
        assert torch.isnan(function(nan)).all()
    assert torch.isnan(special.dirichlet_concentration(nan.expand(1, 3))).all()


def test_a_root_is_found_where_newton_alone_diverges():
    target = torch.tensor([0.3, -1.2], dtype=torch.float64)
    found = special.falling_root(
        lambda u: (target - u.atan(), -1 / (1 + u.square())), torch.full_like(target, 30.0), -50.0, 50.0
    )
    torch.testing.assert_close(found, target.tan())
