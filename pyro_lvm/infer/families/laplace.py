r"""Closed form of the Laplace family: weighted median and mean absolute deviation.

.. math::

    \mu = \arg\min_m \sum_n w_n |x_n - m|, \qquad b = \frac{\sum_n w_n |x_n - \mu|}{\sum_n w_n}

Neither is a function of sums of fixed length: the statistic is the weight of every distinct value of the site, sorted
(cells times distinct values numbers). Sites cannot add such lists up, so where the location is learned, a
parameter that several of them share is left to the gradient.

References:
    R. Norton (1984), The double exponential distribution: using calculus to find a maximum likelihood estimator, The
    American Statistician 38(2).
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.normal import spread
from pyro_lvm.infer.families.rows import Rows, learned
from pyro_lvm.infer.m_step import Argument, ClosedForm, Conjugate, Statistics, View, closed_form
from pyro_lvm.ops.cells import compact

__all__: list[str] = []


def _weighted_values(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Weights in units of the scale; the values, and a one for every cell that will be added to them."""
    weights = s["histogram"] / now["scale"].double().unsqueeze(-1)
    return weights, s["values"].expand(weights.shape), torch.ones_like(s["total"])


def _median(weights: Tensor, values: Tensor, cells: Tensor) -> Tensor:
    below = weights.cumsum(-1)
    half = 0.5 * below[..., -1:]
    position = torch.searchsorted(below, half).clamp_max(values.shape[-1] - 1)
    found = values.gather(-1, position).squeeze(-1) / cells
    return torch.where(half.squeeze(-1) > 0, found, torch.nan)


def _deviation(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    distance = (s["values"] - now["loc"].double().unsqueeze(-1)).abs()
    return (s["histogram"] * distance).sum(-1), s["total"], s["floor"] * s["total"]


class _Laplace(ClosedForm):
    arguments = (
        Argument("loc", lambda fn: compact(fn.loc), _weighted_values, _median, (View("loc"),)),
        Argument(
            "scale",
            lambda fn: compact(fn.scale),
            _deviation,
            lambda distance, total, floor: torch.maximum(distance, floor) / total,
            (
                View("scale"),
                View("log scale", torch.log, torch.exp),
                View("rate", torch.reciprocal, torch.reciprocal),
            ),
            conjugate={
                ("scale", dist.InverseGamma): Conjugate(
                    lambda prior: (
                        prior.rate,
                        prior.concentration + 1,
                        torch.zeros_like(prior.rate),
                    )
                )
            },
        ),
    )
    sweeps = 20
    additive = False

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        rows = Rows.of(fn, value, weights, compact(fn.loc), compact(fn.scale))
        values, index = value.double().unique(return_inverse=True)
        variance = spread(value, tuple(range(value.dim())), keepdim=False).variance
        floor = 0.5 * variance_floor * variance  # the variance is twice the scale squared
        return Statistics(
            rows.cells,
            total=rows.sum(),
            histogram=rows.histogram(index, len(values)),
            values=values.expand(*([1] * len(rows.cells)), -1),
            floor=floor.clamp_min(torch.finfo(fn.scale.dtype).tiny).sqrt().expand(rows.cells),
        )


_KNOWN_LOC = _Laplace()


@closed_form.register(torch.distributions.Laplace)
def _(fn: Any) -> ClosedForm:
    """A form of its own for every site whose location is learned; deviations from a known one do add up."""
    return _Laplace() if learned(fn.loc) else _KNOWN_LOC
