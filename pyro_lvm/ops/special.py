r"""Inverses of special functions that maximum likelihood asks for, vectorised, in float64.

Every function iterates a stated number of times, or until no entry moves, and is good to 1e-12 relative, or to the
rounding of its argument where that is worse (a concentration c is known to :math:`c \cdot 10^{-16}` only).

References:
    T. Minka (2000), Estimating a Dirichlet distribution; and (2002), Estimating a gamma distribution, equations 9, 10.
    D. Best, N. Fisher (1981), The bias of the maximum likelihood estimators of the von Mises-Fisher concentration
    parameters, Communications in Statistics B 10(5).
    M. Abramowitz, I. Stegun (1964), Handbook of Mathematical Functions, 6.1.41, 6.3.18 and
    9.7.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "LARGEST_CONCENTRATION",
    "dirichlet_concentration",
    "falling_root",
    "gamma_concentration",
    "inverse_bessel_ratio",
    "inverse_digamma",
    "log_gamma_remainder",
    "log_minus_digamma",
]

# Values that agree to four digits have a concentration of about 1e8; beyond, log-densities lose more than 1e-8 nats.
LARGEST_CONCENTRATION = 1e8

# log Gamma(x) - x log x + x - log(2 pi / x) / 2 in odd powers of 1 / x: Abramowitz and Stegun 6.1.41
_STIRLING_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)

# log x - digamma(x) - 1 / (2 x) = sum of B_2k / (2k x^2k): Abramowitz and Stegun 6.3.18
_DIGAMMA_SERIES = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760)
_SERIES_FROM = 16.0

# 1 - I1(x) / I0(x) in powers of 1 / x, from Abramowitz and Stegun 9.7.1
_BESSEL_SERIES = (1 / 2, 1 / 8, 1 / 8, 25 / 128, 13 / 32, 1073 / 1024)
_BESSEL_FROM = 500.0


def _trigamma(x: Tensor) -> Tensor:
    return torch.polygamma(1, x)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """c0 x + c1 x^2 + ..."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return total


def log_minus_digamma(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r""":math:`\log x - \psi(x)` without cancellation where x is large.

    Args:
        x: Positive.

    Returns:
        Positive, falling from infinity to zero.

    Example:
        >>> round(float(log_minus_digamma(torch.tensor(1e9, dtype=torch.float64))) * 2e9, 6)
        1.0
    """
    series = 0.5 / x + _polynomial(_DIGAMMA_SERIES, x.square().reciprocal())
    return torch.where(x < _SERIES_FROM, x.log() - torch.digamma(x), series)


def log_gamma_remainder(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r""":math:`\log\Gamma(x) - x \log x + x` without cancellation where x is large.

    Args:
        x: Positive.

    Example:
        >>> remainder = log_gamma_remainder(torch.tensor(1e8, dtype=torch.float64))
        >>> round(float(remainder) - 0.5 * math.log(2e-8 * math.pi), 8)
        0.0
    """
    inverse = x.reciprocal()
    series = 0.5 * (2 * math.pi * inverse).log() + x * _polynomial(_STIRLING_SERIES, inverse.square())
    return torch.where(x < _SERIES_FROM, torch.lgamma(x) - torch.xlogy(x, x) + x, series)


def inverse_digamma(y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""The x > 0 with :math:`\psi(x) = y`, by five Newton steps from Minka's start (appendix C).

    Args:
        y: Real.

    Example:
        >>> round(float(inverse_digamma(torch.digamma(torch.tensor(3.0, dtype=torch.float64)))), 12)
        3.0
    """
    y = y.double()
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + 0.5772156649015329))
    for _ in range(5):
        x = x - (torch.digamma(x) - y) / _trigamma(x)
    return x


def gamma_concentration(gap: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""The a with :math:`\log a - \psi(a) = s`: the shape of a gamma law whose log mean exceeds its mean log by s.

    Newton's method on the logarithms of both sides, between which the relation is nearly a straight line; four steps.

    Args:
        gap: s >= 0, nats.

    Returns:
        At most `LARGEST_CONCENTRATION`, which is where s = 0 goes.

    Example:
        >>> s = log_minus_digamma(torch.tensor([0.01, 2.5, 1e6], dtype=torch.float64))
        >>> gamma_concentration(s).tolist()
        [0.01..., 2.5..., 1000000.0...]
    """
    s = gap.double().clamp_min(0.4 / LARGEST_CONCENTRATION)
    a = (3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)
    for _ in range(4):
        value = log_minus_digamma(a)
        far = -(0.5 + 1 / (6 * a)) / a
        elasticity = torch.where(a < _SERIES_FROM, 1 - a * _trigamma(a), far) / value
        a = a * (-(value / s).log() / elasticity).exp()
    return a.clamp_max(LARGEST_CONCENTRATION)


def inverse_bessel_ratio(ratio: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""The :math:`\kappa` with :math:`I_1(\kappa) / I_0(\kappa) = r`, by six Newton steps.

    Args:
        ratio: r, from 0 (or below) to 1.

    Returns:
        From 0 to `LARGEST_CONCENTRATION`.

    Example:
        >>> kappa = torch.tensor([0.5, 20.0], dtype=torch.float64)
        >>> r = torch.special.i1e(kappa) / torch.special.i0e(kappa)
        >>> [round(k, 10) for k in inverse_bessel_ratio(r).tolist()]
        [0.5, 20.0]
    """
    r = ratio.double().clamp_min(0.0)
    rest = (1 - r).clamp_min(0.5 / LARGEST_CONCENTRATION)
    near = r * (2 - r.square()) / (1 - r.square()).clamp_min(torch.finfo(r.dtype).tiny)
    kappa = torch.where(rest < 0.5 / _BESSEL_FROM, 0.5 / rest + 0.25, near)
    for _ in range(6):
        small = kappa.clamp(torch.finfo(r.dtype).tiny, _BESSEL_FROM)
        found = torch.special.i1e(small) / torch.special.i0e(small)
        slope = torch.where(small > 1e-4, 1 - found / small - found.square(), torch.full_like(small, 0.5))
        far = kappa.clamp_min(_BESSEL_FROM)
        gap = rest - _polynomial(_BESSEL_SERIES, far.reciprocal())
        far_slope = (0.5 + (0.25 + 0.375 / far) / far) / far.square()
        series = kappa >= _BESSEL_FROM
        kappa = kappa - torch.where(series, gap / far_slope, (found - r) / slope)
    return kappa.clamp(0.0, LARGEST_CONCENTRATION)


def falling_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, low: float, high: float, iterations: int = 100
) -> Tensor:
    """Where functions cross zero from above, by Newton's method kept inside a bracket that bisection narrows.

    Args:
        function: From points to values and slopes, entry by entry.
        start: Any points in the bracket.
        low: A point below every root.
        high: A point above every root; where there is no root, the end that the sign points to.
        iterations: At most; it stops as soon as nothing moves.

    Example:
        >>> two = torch.tensor([2.0], dtype=torch.float64)
        >>> float(falling_root(lambda u: (two - u * u, -2 * u), two, 0.0, 5.0))
        1.414213562373095...
    """
    lower, upper = torch.full_like(start, low), torch.full_like(start, high)
    point = start
    for _ in range(iterations):
        value, slope = function(point)
        lower, upper = torch.where(value > 0, point, lower), torch.where(value > 0, upper, point)
        newton = point - value / slope
        inside = (newton >= lower) & (newton <= upper)
        moved = torch.where(inside, newton, 0.5 * (lower + upper))
        still = (moved - point).abs() <= 4e-16 * (1 + point.abs())
        point = moved
        if bool((still | torch.isnan(value)).all()):
            break
    return point


def dirichlet_concentration(mean_log: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    r"""The maximum-likelihood concentrations of a Dirichlet law from the mean logarithms of its values.

    The equations :math:`\psi(a_j) = \psi(\sum_i a_i) + \overline{\log x_j}` are one equation in the sum of all
    concentrations: the right side gives every :math:`a_j`, which must add up to it.

    Args:
        mean_log: Mean of log x, nats; exponentials add up to less than 1.

    Returns:
        Concentrations; NaN where `mean_log` is NaN. Their sum is at most `LARGEST_CONCENTRATION`.

    Example:
        >>> a = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
        >>> [round(c, 9) for c in dirichlet_concentration(torch.digamma(a) - torch.digamma(a.sum())).tolist()]
        [0.5, 2.0, 7.0]
    """
    mean_log = mean_log.double()

    def parts(log_total: Tensor) -> tuple[Tensor, Tensor]:
        total = log_total.exp().unsqueeze(-1)
        return total, inverse_digamma(torch.digamma(total) + mean_log)

    def excess(log_total: Tensor) -> tuple[Tensor, Tensor]:
        total, found = parts(log_total)
        together = found.sum(-1)
        slope = (_trigamma(total) / _trigamma(found)).sum(-1) * total.squeeze(-1) / together
        return together.log() - log_total, slope - 1

    start = torch.zeros_like(mean_log[..., 0])
    return parts(falling_root(excess, start, -40.0, math.log(LARGEST_CONCENTRATION)))[1]
