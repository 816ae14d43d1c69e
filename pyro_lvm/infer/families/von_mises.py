r"""Closed form of the VonMises family: the direction and the length of the mean of unit vectors.

.. math::

    (C, S) = \sum_n w_n (\cos x_n, \sin x_n), \qquad \mu = \operatorname{atan2}(S, C), \qquad
    \frac{I_1(\kappa)}{I_0(\kappa)} = \frac{C \cos\mu + S \sin\mu}{\sum_n w_n}

The normaliser is exact here. That of `torch.distributions.VonMises` is a polynomial good to about 1e-7.

References:
    K. Mardia, P. Jupp (2000), Directional Statistics, section 5.3.1.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.special import inverse_bessel_ratio

__all__: list[str] = []


def _resultant(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    kappa = now["concentration"].double()
    return kappa * s["sum_0"], kappa * s["sum_1"], s["total"]


def _direction(cosine: Tensor, sine: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, torch.atan2(sine, cosine), torch.nan)


def _length(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    loc = now["loc"].double()
    return s["sum_0"] * loc.cos() + s["sum_1"] * loc.sin(), s["total"]


def _concentration(length: Tensor, total: Tensor) -> Tensor:
    """Uniform angles have concentration zero, which the constraint keeps out."""
    return inverse_bessel_ratio(length / total).clamp_min(1e-10)


@closed_form_of(torch.distributions.VonMises)
class _VonMises(ExponentialFamily):
    arguments = (
        Argument(
            "loc",
            lambda fn: compact(fn.loc),
            _resultant,
            _direction,
            (View("loc"),),
            conjugate={
                ("loc", dist.VonMises): Conjugate(
                    lambda prior: (
                        prior.concentration * prior.loc.cos(),
                        prior.concentration * prior.loc.sin(),
                        torch.ones_like(prior.loc),
                    )
                )
            },
        ),
        Argument(
            "concentration",
            lambda fn: compact(fn.concentration),
            _length,
            _concentration,
            (View("concentration"), View("log concentration", torch.log, torch.exp)),
        ),
    )
    sweeps = 50

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((), ())

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return value.cos(), value.sin()

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        loc, kappa = compact(fn.loc).double(), compact(fn.concentration).double()
        log_normalizer = math.log(2 * math.pi) + torch.special.i0e(kappa).log() + kappa
        return (kappa * loc.cos(), kappa * loc.sin()), log_normalizer
