"""Closed form of the Normal family: moments about the values' centre."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import ratio
from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__ = ["LOC", "VARIANCE", "location", "moments", "nonzero_variance", "spread"]

# Equal values, averaged in float64, seem to vary by this much of their size.
ROUNDING = 8 * torch.finfo(torch.float64).eps


def scatter(statistics: Statistics, loc: Tensor) -> Tensor:
    """Weighted squared distance to a location given about the statistics' centre."""
    return statistics["square"] - 2 * loc * statistics["centred_sum"] + loc.square() * statistics["total"]


def expected_scatter(statistics: Statistics, now: dict[str, Tensor]) -> Tensor:
    """The same under the location's posterior, if it has one: `now["loc spread"]` is its variance."""
    spread = scatter(statistics, now["loc"].double() - statistics["centre"])
    return spread + statistics["total"] * now["loc spread"] if "loc spread" in now else spread


LOC = Argument(
    "loc",
    lambda fn: compact(fn.loc),
    lambda s, now: (s["sum"] / now["variance"], s["total"] / now["variance"]),
    ratio,
    (View("loc"),),
    same_cells=(lambda s, now: (s["sum"], s["total"]), ratio),
    conjugate={
        ("loc", dist.Normal): Conjugate(
            lambda prior: (prior.loc / prior.variance, 1 / prior.variance),
            lambda weighted, precision: dist.Normal(weighted / precision, precision.rsqrt()),
            lambda q: q.loc,
            lambda q: q.variance,
        )
    },
    correct=lambda variance, now: -0.5 * variance / now["variance"],
)

VARIANCE = Argument(
    "variance",
    lambda fn: compact(fn.scale).square(),
    lambda s, now: (expected_scatter(s, now), s["total"], s["floor"] * s["total"]),
    lambda square, total, floor: torch.maximum(square, floor) / total,
    (
        View("scale", torch.sqrt, torch.square),
        View("variance", scales=True),
        View("log scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
        View("log variance", torch.log, torch.exp),
        View("precision", torch.reciprocal, torch.reciprocal),
    ),
    conjugate={
        ("variance", dist.InverseGamma): Conjugate(
            lambda prior: (2 * prior.rate, 2 * prior.concentration + 2, torch.zeros_like(prior.rate)),
            lambda square, total, floor: dist.InverseGamma(0.5 * total - 1, 0.5 * square),
            lambda q: q.rate / q.concentration,
            lambda q: 0.5 * (torch.digamma(q.concentration) - q.concentration.log()),
        ),
        ("precision", dist.Gamma): Conjugate(
            lambda prior: (2 * prior.rate, 2 * prior.concentration - 2, torch.zeros_like(prior.rate)),
            lambda square, total, floor: dist.Gamma(0.5 * total + 1, 0.5 * square),
            lambda q: q.rate / q.concentration,
            lambda q: 0.5 * (torch.digamma(q.concentration) - q.concentration.log()),
        ),
    },
    rescale=lambda sums, factor: (sums[0] / factor, sums[1], sums[2] / factor),
)


def location(value: Tensor, rows: tuple[int, ...], keepdim: bool) -> Reference:
    """Mean and variance over the rows, the mean such that subtracting it from the values is harmless."""
    if not rows:
        return Reference(value.double(), torch.zeros_like(value, dtype=torch.float64))
    variance, centre = torch.var_mean(value.double(), rows, correction=0, keepdim=keepdim)
    centre = centre.to(value.dtype).double() if value.is_floating_point() else centre
    return Reference(centre, variance)


def spread(value: Tensor, rows: tuple[int, ...], keepdim: bool) -> Reference:
    """The same for families whose density has no bound where all values are equal."""
    found = location(value, rows, keepdim)
    return Reference(found.centre, nonzero_variance(found.variance, found.centre))


def nonzero_variance(variance: Tensor, centre: Tensor) -> Tensor:
    """What a floor is relative to: where all values are equal, their square, or one if all are zero."""
    square = torch.where(centre == 0, 1.0, centre.square())
    return torch.where(variance > (ROUNDING * centre).square(), variance, square)


def moments(
    fn: Any, reference: Reference, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
) -> Statistics:
    """First and second moments, of which locations and variances are made."""
    first, second = sums
    floor = (variance_floor * reference.variance).clamp_min(torch.finfo(fn.loc.dtype).tiny)
    return Statistics(
        total.shape,
        total=total,
        centre=reference.centre,
        centred_sum=first,
        sum=first + reference.centre * total,
        square=second,
        floor=floor.expand(total.shape),
    )


@closed_form_of(torch.distributions.Normal)
class _Normal(ExponentialFamily):
    arguments = (LOC, VARIANCE)
    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((), ())

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        return spread(value, rows, keepdim)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return value, value.square()

    def fill(self, value: Tensor, fn: Any, reference: Reference | None, out: tuple[Tensor, ...]) -> None:
        out[0].copy_(value)
        torch.mul(out[0], out[0], out=out[1])

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        loc, scale = compact(fn.loc).double(), compact(fn.scale).double()
        loc = loc if reference is None else loc - reference.centre
        precision = scale.square().reciprocal()
        log_normalizer = 0.5 * precision * loc.square() + scale.log() + 0.5 * math.log(2 * math.pi)
        return (precision * loc, -0.5 * precision), log_normalizer

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        if reference is None:
            raise ValueError("Normal: expected the reference that the statistics were gathered about.")
        return moments(fn, reference, total, sums, variance_floor)
