r"""Closed forms of families on the positive numbers: Exponential, HalfNormal, LogNormal, the scale of Weibull.

.. math::

    \text{Exponential:} \quad \lambda = \frac{\sum w}{\sum w x} \qquad
    \text{HalfNormal:} \quad \sigma^2 = \frac{\sum w x^2}{\sum w} \qquad
    \text{Weibull, given k:} \quad \lambda^k = \frac{\sum w x^k}{\sum w}

A log-normal value is one whose logarithm is normal: its mean and variance are learned as those of a Normal.

References:
    N. Johnson, S. Kotz, N. Balakrishnan (1994), Continuous Univariate Distributions 1, chapters 13, 14, 19 and 21.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import RATE_VIEWS, almost_zero, sum_and_total
from pyro_lvm.infer.families.normal import LOC, VARIANCE, moments, spread
from pyro_lvm.infer.families.rows import beside, learned
from pyro_lvm.infer.m_step import (
    Argument,
    Conjugate,
    ExponentialFamily,
    Reference,
    Statistics,
    View,
    closed_form,
    closed_form_of,
)
from pyro_lvm.ops.cells import compact

__all__: list[str] = []


@closed_form_of(torch.distributions.Exponential)
class _Exponential(ExponentialFamily):
    arguments = (
        Argument(
            "rate",
            lambda fn: compact(fn.rate),
            sum_and_total,
            lambda total, weight: weight / total,
            (RATE_VIEWS[0], View("mean", torch.reciprocal, torch.reciprocal), RATE_VIEWS[1]),
            conjugate={
                ("rate", dist.Gamma): Conjugate(
                    lambda prior: (prior.rate, prior.concentration - 1),
                    lambda total, weight: dist.Gamma(weight + 1, total),
                    lambda q: q.mean,
                    lambda q: torch.digamma(q.concentration) - q.concentration.log(),
                )
            },
            feasible=lambda sums: (sums[0], almost_zero(sums[1], sums[0])),
        ),
    )
    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rate = compact(fn.rate)
        return (-rate,), -rate.log()


@closed_form_of(torch.distributions.HalfNormal)
class _HalfNormal(ExponentialFamily):
    arguments = (replace(VARIANCE, accumulate=lambda s, now: (s["sum_0"], s["total"], s["floor"] * s["total"])),)

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        found = spread(value, rows, keepdim)
        return replace(found, centre=torch.zeros_like(found.variance))

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value.square(),)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        scale = compact(fn.scale).double()
        return (-0.5 / scale.square(),), scale.log() + 0.5 * math.log(math.pi / 2)

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        if reference is None:
            raise ValueError("HalfNormal: expected the reference that the statistics were gathered about.")
        floor = (variance_floor * reference.variance).clamp_min(torch.finfo(fn.scale.dtype).tiny)
        return Statistics(total.shape, total=total, sum_0=sums[0], floor=floor.expand(total.shape))


@closed_form_of(torch.distributions.LogNormal)
class _LogNormal(ExponentialFamily):
    arguments = (LOC, VARIANCE)

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((), ())

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        logs = spread(value.double().clamp_min(torch.finfo(value.dtype).tiny).log(), rows, keepdim)
        return Reference(torch.zeros_like(logs.variance), logs.variance, logs.centre)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        log = value.clamp_min(torch.finfo(value.dtype).tiny).log()
        if reference is not None and reference.level is not None:
            log = log - beside(reference.level, log).to(log.dtype)
        return log, log.square()

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        loc, scale = compact(fn.loc).double(), compact(fn.scale).double()
        loc = loc if reference is None or reference.level is None else loc - reference.level
        precision = scale.square().reciprocal()
        log_normalizer = 0.5 * precision * loc.square() + scale.log() + 0.5 * math.log(2 * math.pi)
        return (precision * loc, -0.5 * precision), log_normalizer

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        return -value.clamp_min(torch.finfo(value.dtype).tiny).log()

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        if reference is None or reference.level is None:
            raise ValueError("LogNormal: expected the reference that the statistics were gathered about.")
        return moments(fn, Reference(reference.level, reference.variance), total, sums, variance_floor)


class _Weibull(ExponentialFamily):
    """With one known concentration k for all cells and rows."""

    arguments = (
        Argument(
            "scale",
            lambda fn: compact(fn.scale),
            lambda s, now: (s["sum_0"], s["total"], s["power"]),
            lambda sum_of_powers, total, power: (sum_of_powers / total) ** (total / power),
            (View("scale"), View("log scale", torch.log, torch.exp)),
        ),
    )

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value.double() ** _power(fn),)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        scale, power = compact(fn.scale).double(), _power(fn)
        return (-(scale**-power),), power * scale.log() - power.log()

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        return torch.xlogy(_power(fn) - 1, value.double())

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        return Statistics(total.shape, total=total, sum_0=sums[0], power=total * _power(fn))


def _power(fn: Any) -> Tensor:
    return compact(fn.concentration).reshape(()).double()


_WEIBULL = _Weibull()


@closed_form.register(torch.distributions.Weibull)
def _(fn: Any) -> ExponentialFamily | None:
    return None if learned(fn.concentration) or compact(fn.concentration).numel() > 1 else _WEIBULL
