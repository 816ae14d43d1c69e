r"""Closed forms of the Gamma and InverseGamma families: concentration a and rate b.

.. math::

    \log a - \psi(a) = \log \bar x - \overline{\log x}, \qquad b = a / \bar x

jointly where both have parameters with the same blocks; else in turn, :math:`\psi(a) = \overline{\log b + \log x}`
given b and :math:`b = \sum w a / \sum w x` given a, until nothing moves. An inverse-gamma value is the reciprocal of a
gamma one. Concentrations are capped where the variance would fall below the floor, and at `LARGEST_CONCENTRATION`.

Large concentrations make the density a small difference of large terms. With values y in units of their mean c, and
:math:`\epsilon = (b c - a) / a`, it is written in terms that are small where a and b fit the data:

.. math::

    \log p = (a - 1)(\log y - y + 1) - (a \epsilon + 1)(y - 1) - a (\epsilon - \log(1 + \epsilon))
    - [\log\Gamma(a) - a \log a + a] - \log c

References:
    T. Minka (2002), Estimating a gamma distribution, equations 5 to 10.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import ratio
from pyro_lvm.infer.families.normal import location
from pyro_lvm.infer.families.rows import beside
from pyro_lvm.infer.m_step import (
    Argument,
    Conjugate,
    ExponentialFamily,
    Joint,
    Reference,
    Statistics,
    View,
    closed_form_of,
)
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.special import LARGEST_CONCENTRATION, gamma_concentration, inverse_digamma, log_gamma_remainder

__all__: list[str] = []

CONCENTRATION = Argument(
    "concentration",
    lambda fn: compact(fn.concentration),
    lambda s, now: (s["sum_log"] + s["total"] * now["rate"].double().log(), s["total"]),
    lambda logs, total: inverse_digamma(logs / total).clamp_max(LARGEST_CONCENTRATION),
    (View("concentration"), View("log concentration", torch.log, torch.exp)),
)

RATE = Argument(
    "rate",
    lambda fn: compact(fn.rate),
    lambda s, now: (s["total"] * now["concentration"].double(), s["sum"]),
    ratio,
    (
        View("rate"),
        View("log rate", torch.log, torch.exp),
        View("scale", torch.reciprocal, torch.reciprocal),
        View("log scale", lambda rate: -rate.log(), lambda v: (-v).exp()),
    ),
    conjugate={
        ("rate", dist.Gamma): Conjugate(lambda prior: (prior.concentration - 1, prior.rate)),
        ("scale", dist.InverseGamma): Conjugate(lambda prior: (prior.concentration + 1, prior.rate)),
    },
)


def _jointly(total: Tensor, value: Tensor, log: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    mean = value / total
    a = gamma_concentration(mean.log() - log / total)
    a = torch.minimum(a, mean.square() / (floor / total))
    return a, a / mean


def _level(reference: Reference | None) -> Tensor:
    """The mean of the gamma values; they are not centred, but measured in units of it."""
    return torch.ones((), dtype=torch.float64) if reference is None or reference.level is None else reference.level


@closed_form_of(torch.distributions.Gamma)
class _Gamma(ExponentialFamily):
    arguments = (CONCENTRATION, RATE)
    joint = Joint(
        ("concentration", "rate"), lambda s: (s["total"], s["sum"], s["sum_log"], s["floor"] * s["total"]), _jointly
    )
    sweeps = 200
    extra_power: ClassVar[float] = -1.0

    def gamma_value(self, value: Tensor) -> Tensor:
        """The gamma-distributed number behind a value."""
        return value.double().clamp_min(torch.finfo(value.dtype).tiny)

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((), ())

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        found = location(self.gamma_value(value), rows, keepdim)
        return Reference(torch.zeros_like(found.variance), found.variance, found.centre)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        inside = self.gamma_value(value)
        level = beside(_level(reference), inside)
        change = (inside - level) / level
        log = torch.where(change.abs() < 0.5, change.log1p(), (inside / level).log())
        return log - change, change

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        a, b, level = compact(fn.concentration).double(), compact(fn.rate).double(), _level(reference)
        excess = ((b * level - a) / a).clamp_min(-1.0)
        power = a + self.extra_power
        log_normalizer = log_gamma_remainder(a) + a * (excess - excess.log1p()) - self.extra_power * level.log()
        return (power, self.extra_power - a * excess), log_normalizer

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        if reference is None:
            raise ValueError("Gamma: expected the reference that the statistics were gathered about.")
        level, (bent, change) = _level(reference), sums
        floor = (variance_floor * reference.variance).clamp_min(torch.finfo(fn.rate.dtype).tiny).expand(total.shape)
        return Statistics(
            total.shape,
            total=total,
            sum=level * (total + change),
            sum_log=level.log() * total + change + bent,
            floor=floor,
        )


@closed_form_of(torch.distributions.InverseGamma)
class _InverseGamma(_Gamma):
    extra_power = 1.0

    def gamma_value(self, value: Tensor) -> Tensor:
        """Its reciprocal."""
        return value.double().clamp_min(torch.finfo(value.dtype).tiny).reciprocal()
