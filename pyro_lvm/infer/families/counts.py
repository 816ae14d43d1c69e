r"""Closed forms of families learned from a mean of counts or coin flips: Bernoulli, Binomial, Geometric, Poisson.

.. math::

    \text{Bernoulli:} \quad p = \frac{\sum w x}{\sum w} \qquad
    \text{Binomial:} \quad p = \frac{\sum w x}{\sum w n} \qquad
    \text{Geometric:} \quad p = \frac{\sum w}{\sum w (1 + x)} \qquad
    \text{Poisson:} \quad \lambda = \frac{\sum w x}{\sum w}

References:
    N. Johnson, A. Kemp, S. Kotz (2005), Univariate Discrete Distributions, sections 3.8, 4.7 and 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.rows import Rows, learned
from pyro_lvm.infer.m_step import (
    Argument,
    ClosedForm,
    Conjugate,
    ExponentialFamily,
    Reference,
    Statistics,
    View,
    closed_form,
    closed_form_of,
)
from pyro_lvm.ops.cells import compact

__all__ = [
    "BETA",
    "PROBS_VIEWS",
    "RATE_VIEWS",
    "almost_zero",
    "beta_counts",
    "beta_posterior",
    "expected_log_odds",
    "finite_log",
    "given",
    "log_odds",
    "logits_of",
    "positive_counts",
    "positive_ratio",
    "probs_of",
    "ratio",
    "sum_and_total",
    "within_total",
]

# How far from the boundary a mode is kept, as a share: small against any row, large against rounding.
ALMOST_ZERO = 1e-6
# Counts that are negative by less are zeros that were rounded.
ROUNDING = 1e-5


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A mean from a sum and a total."""
    return numerator / denominator


def sum_and_total(statistics: Statistics, current: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What a mean is learned from."""
    return statistics["sum_0"], statistics["total"]


def probs_of(fn: Any, event_dim: int, squash: Callable[[Tensor], Tensor]) -> Tensor:
    """Probabilities from whichever parametrisation the distribution was built with, not expanded."""
    raw = compact(fn._param, event_dim)
    return squash(raw) if fn._param is fn.__dict__.get("logits") else raw


def logits_of(fn: Any) -> Tensor:
    """Log-odds likewise, finite as torch makes them."""
    raw = compact(fn._param)
    if fn._param is fn.__dict__.get("logits"):
        return raw
    return torch.distributions.utils.probs_to_logits(raw, is_binary=True)


def log_odds(probs: Tensor) -> Tensor:
    """Log-odds, finite at zero and one as torch makes them."""
    return torch.logit(probs, torch.finfo(probs.dtype).eps)


def finite_log(value: Tensor) -> Tensor:
    """The logarithm, finite at zero: a mode at minus infinity is reached as far as the type goes."""
    return value.clamp_min(torch.finfo(value.dtype).tiny).log()


def within_total(sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Successes and trials that put the mode just inside of (0, 1)."""
    successes, total = sums
    both = torch.stack([successes, total - successes], -1)
    successes, failures = inside_simplex(both).unbind(-1)
    return successes, successes + failures


def positive_counts(sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Counts that put the mode just inside of the simplex."""
    return (inside_simplex(sums[0]),)


def inside_simplex(counts: Tensor) -> Tensor:
    """Counts that put the mode just inside of the simplex: at its best corner if none of them is positive."""
    positive = counts.clamp_min(0).sum(-1, keepdim=True)
    corner = torch.zeros_like(counts).scatter(-1, counts.argmax(-1, keepdim=True), 1.0)
    none = (counts.amax(-1, keepdim=True) <= 0) & (counts.amin(-1, keepdim=True) < -ROUNDING)
    counts = torch.where(none & (corner > 0), corner, counts)
    return almost_zero(counts, positive)


def positive_ratio(sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A numerator that puts the mode just above zero."""
    return almost_zero(sums[0], sums[1]), sums[1]


def almost_zero(counts: Tensor, total: Tensor) -> Tensor:
    """Counts below zero become almost zero: at zero itself, the density of such a prior is infinite."""
    unit = torch.where(total > 0, total, torch.ones_like(total)).expand_as(counts)
    return torch.where(counts < -ROUNDING * unit, ALMOST_ZERO * unit, counts.clamp_min(0))


def beta_counts(prior: Any) -> tuple[Tensor, ...]:
    """What a Beta prior adds to successes and trials."""
    return prior.concentration1 - 1, prior.concentration1 + prior.concentration0 - 2


def beta_posterior(successes: Tensor, total: Tensor) -> Any:
    """The Beta posterior from successes and trials, the prior's included."""
    return dist.Beta(successes + 1, total - successes + 1)


def expected_log_odds(q: Any) -> tuple[Tensor, Tensor]:
    """Expected log p and log(1 - p) under a Beta distribution."""
    both = torch.digamma(q.concentration1 + q.concentration0)
    return torch.digamma(q.concentration1) - both, torch.digamma(q.concentration0) - both


BETA = {("probs", dist.Beta): Conjugate(beta_counts)}
PROBS_VIEWS = (View("probs"), View("logits", log_odds, torch.sigmoid))
RATE_VIEWS = (View("rate"), View("log rate", finite_log, torch.exp))


@closed_form_of(torch.distributions.Bernoulli)
class _Bernoulli(ExponentialFamily):
    arguments = (
        Argument(
            "probs",
            lambda fn: probs_of(fn, 0, torch.sigmoid),
            sum_and_total,
            ratio,
            PROBS_VIEWS,
            conjugate={
                ("probs", dist.Beta): Conjugate(
                    beta_counts,
                    beta_posterior,
                    lambda q: torch.sigmoid(torch.digamma(q.concentration1) - torch.digamma(q.concentration0)),
                    lambda q: torch.logaddexp(*expected_log_odds(q)),
                )
            },
            feasible=within_total,
        ),
    )
    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = logits_of(fn)
        return (logits,), torch.nn.functional.softplus(logits)


@closed_form_of(torch.distributions.Poisson)
class _Poisson(ExponentialFamily):
    arguments = (
        Argument(
            "rate",
            lambda fn: compact(fn.rate),
            sum_and_total,
            ratio,
            RATE_VIEWS,
            conjugate={
                ("rate", dist.Gamma): Conjugate(
                    lambda prior: (prior.concentration - 1, prior.rate),
                    lambda total, weight: dist.Gamma(total + 1, weight),
                    lambda q: (torch.digamma(q.concentration) - q.rate.log()).exp(),
                    lambda q: (torch.digamma(q.concentration) - q.rate.log()).exp() - q.mean,
                )
            },
            feasible=positive_ratio,
        ),
    )
    first_is_value = True
    base_of_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rate = compact(fn.rate)
        return (rate.log(),), rate

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        return -torch.lgamma(value + 1)


_TRIALS = Argument(
    "probs",
    lambda fn: probs_of(fn, 0, torch.sigmoid),
    lambda statistics, current: (statistics["sum_0"], statistics["trials"]),
    ratio,
    PROBS_VIEWS,
    conjugate=BETA,
    feasible=within_total,
)


class _Binomial(ExponentialFamily):
    """With one number of trials for all cells and rows."""

    arguments = (_TRIALS,)
    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = logits_of(fn)
        return (logits,), _the_number(fn.total_count) * torch.nn.functional.softplus(logits)

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        trials = _the_number(fn.total_count)
        return torch.lgamma(trials + 1) - torch.lgamma(value + 1) - torch.lgamma(trials - value + 1)

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        return Statistics(total.shape, total=total, sum_0=sums[0], trials=total * _the_number(fn.total_count))


class _BinomialByRow(ClosedForm):
    """With numbers of trials that vary by row, column or component."""

    arguments = (_TRIALS,)

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        rows = Rows.of(fn, value, weights, compact(fn._param))
        return Statistics(rows.cells, sum_0=rows.sum(value), trials=rows.sum(compact(fn.total_count)))


def _the_number(total_count: Tensor) -> Tensor:
    return compact(total_count).reshape(())


_BINOMIAL, _BINOMIAL_BY_ROW = _Binomial(), _BinomialByRow()


@closed_form.register(torch.distributions.Binomial)
def _(fn: Any) -> ClosedForm | None:
    if learned(fn.total_count):
        return None
    return _BINOMIAL if compact(fn.total_count).numel() == 1 else _BINOMIAL_BY_ROW


def given(fn: Any) -> tuple[str, Tensor]:
    """Which of "probs" and "logits" a distribution was built with, and its value, not expanded.

    The other one is cached in the same place once somebody asks for it, by then at full size.
    """
    found = {name: compact(tensor) for name, tensor in vars(fn).items() if name in ("probs", "logits")}
    return min(found.items(), key=lambda item: item[1].numel())


def _geometric_logits(fn: Any) -> Tensor:
    name, raw = given(fn)
    return raw if name == "logits" else torch.distributions.utils.probs_to_logits(raw, is_binary=True)


def _geometric_probs(fn: Any) -> Tensor:
    name, raw = given(fn)
    return raw if name == "probs" else raw.sigmoid()


@closed_form_of(torch.distributions.Geometric)
class _Geometric(ExponentialFamily):
    """The number of failures before the first success."""

    arguments = (
        Argument(
            "probs",
            _geometric_probs,
            lambda statistics, current: (statistics["total"], statistics["total"] + statistics["sum_0"]),
            ratio,
            PROBS_VIEWS,
            conjugate=BETA,
            feasible=within_total,
        ),
    )
    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = _geometric_logits(fn)
        return (torch.nn.functional.logsigmoid(-logits),), torch.nn.functional.softplus(-logits)
