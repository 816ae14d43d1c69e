r"""Closed form of the NegativeBinomial family: r failures, success probability p, mean m = r p / (1 - p).

.. math:: \log p(x) = \log\Gamma(r + x) - \log\Gamma(r) - \log x! + x \log p + r \log(1 - p)

Given r, :math:`p = \sum w x / \sum w (x + r)`. The terms in r are not linear in statistics of x, but they are sums over
a histogram of the counts, since :math:`\log\Gamma(r + x) - \log\Gamma(r) = \sum_{j < x} \log(r + j)`. With
:math:`S_j` the weight of rows above j, and p at its maximum given r, the maximum over r solves

.. math:: \sum_j \frac{S_j}{r + j} = \sum_n w_n \log(1 + m / r).

It has a root where the variance exceeds the mean; else the likelihood rises to that of a Poisson law, and r is capped.

References:
    F. Anscombe (1950), Sampling theory of the negative binomial and logarithmic series distributions, Biometrika 37,
    section 4.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import BETA, PROBS_VIEWS, logits_of, probs_of, ratio
from pyro_lvm.infer.families.rows import Rows, learned
from pyro_lvm.infer.m_step import (
    Argument,
    ClosedForm,
    ExponentialFamily,
    Joint,
    Reference,
    Statistics,
    View,
    closed_form,
)
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.special import falling_root

__all__: list[str] = []


def _above(histogram: Tensor) -> Tensor:
    """Weight of the values above j = 0, 1, ..."""
    return histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def _largest(mean: Tensor, eps: Tensor) -> Tensor:
    """Where the gap to a Poisson law, (m / r)^2 / 4 nats per row, is lost in the rounding of lgamma(r)."""
    return (mean.clamp_min(1.0).square() / (50 * eps)) ** (1 / 3)


def _solve(histogram: Tensor, mean: Tensor, eps: Tensor, slope: Any) -> Tensor:
    """The r at which the harmonic sum of the counts meets another function of log r; NaN without weight."""
    above = _above(histogram)
    steps = torch.arange(above.shape[-1], dtype=above.dtype, device=above.device)

    def excess(log_r: Tensor) -> tuple[Tensor, Tensor]:
        r = log_r.exp()
        share = above / (r.unsqueeze(-1) + steps)
        other, change = slope(r)
        return share.sum(-1) - other, -(share / (r.unsqueeze(-1) + steps)).sum(-1) * r - change

    r = falling_root(excess, mean.clamp(1e-6, 1e6).nan_to_num(1.0).log(), math.log(1e-10), math.log(1e15)).exp()
    return torch.where(torch.isnan(mean), mean, torch.minimum(r, _largest(mean, eps)))


def _mean(histogram: Tensor) -> Tensor:
    return _above(histogram).sum(-1) / histogram.sum(-1)


def _total_count_given_probs(histogram: Tensor, eps: Tensor, log_failure: Tensor) -> Tensor:
    mean = _mean(histogram)
    return _solve(histogram, mean, eps / histogram.sum(-1), lambda r: (-log_failure, torch.zeros_like(r)))


def _jointly(histogram: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    total, mean = histogram.sum(-1), _mean(histogram)
    eps = eps / total

    def profile(r: Tensor) -> tuple[Tensor, Tensor]:
        return total * torch.log1p(mean / r), -total * mean / (r + mean)

    square = (_above(histogram) * (2 * torch.arange(histogram.shape[-1] - 1).to(histogram) + 1)).sum(-1) / total
    spread = square - mean.square() > mean
    r = torch.where(spread, _solve(histogram, mean, eps, profile), _largest(mean, eps))
    return r, mean / (mean + r)


_TOTAL_COUNT = Argument(
    "total_count",
    lambda fn: compact(fn.total_count),
    lambda s, now: (s["histogram"], s["eps"], s["total"] * torch.log1p(-now["probs"].double())),
    _total_count_given_probs,
    (View("total_count"), View("log total_count", torch.log, torch.exp)),
)

_PROBS = Argument(
    "probs",
    lambda fn: probs_of(fn, 0, torch.sigmoid),
    lambda s, now: (s["sum_0"], s["sum_0"] + s["total"] * now["total_count"].double()),
    ratio,
    PROBS_VIEWS,
    conjugate=BETA,
)


class _NegativeBinomial(ExponentialFamily):
    """With one known r for all cells and rows."""

    arguments = (_TOTAL_COUNT, _PROBS)

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = logits_of(fn)
        log_sigmoid = torch.nn.functional.logsigmoid
        return (log_sigmoid(logits),), -compact(fn.total_count).reshape(()) * log_sigmoid(-logits)

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        r = compact(fn.total_count).reshape(())
        return torch.lgamma(r + value) - torch.lgamma(r) - torch.lgamma(value + 1)


class _Dispersed(ClosedForm):
    """With an r that varies, known or learned; one pass in turn maximises over p, sweeps over both."""

    arguments = (_TOTAL_COUNT, _PROBS)
    additive = False
    joint = Joint(("total_count", "probs"), lambda s: (s["histogram"], s["eps"]), _jointly)
    sweeps = 300

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        rows = Rows.of(fn, value, weights, compact(fn._param), compact(fn.total_count))
        found = Statistics(rows.cells, total=rows.sum(), sum_0=rows.sum(value))
        if learned(fn.total_count):
            found["eps"] = found["total"] * torch.finfo(fn.total_count.dtype).eps
            found["histogram"] = rows.histogram(value.long(), int(value.max()) + 2)
        return found


_KNOWN, _VARYING = _NegativeBinomial(), _Dispersed()


@closed_form.register(torch.distributions.NegativeBinomial)
def _(fn: Any) -> ClosedForm | None:
    """A learned r has a form of its own at every site: histograms of different lengths do not add up."""
    if learned(fn.total_count):
        return _Dispersed()
    return _KNOWN if compact(fn.total_count).numel() == 1 else _VARYING
