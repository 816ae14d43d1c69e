"""Closed forms of families learned from a mean of counts or coin flips: Bernoulli, Poisson."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__: list[str] = []

# Pseudo-rows that a boundary is away: small against one row, large against rounding.
ALMOST_ZERO = 1e-6


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


def within_total(sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Successes between none and all."""
    successes, total = sums
    successes, failures = not_negative((successes, total - successes))
    return successes, successes + failures


def not_negative(sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Counts below zero become almost zero: at zero itself, the density of such a prior is infinite."""
    return tuple(torch.where(s < 0, torch.full_like(s, ALMOST_ZERO), s) for s in sums)


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


def finite_log(value: Tensor) -> Tensor:
    """The logarithm, finite at zero: a mode at minus infinity is reached as far as the type goes."""
    return value.clamp_min(torch.finfo(value.dtype).tiny).log()


def finite_logit(probs: Tensor) -> Tensor:
    """Log-odds, finite at zero and one."""
    return finite_log(probs) - finite_log(1 - probs)


PROBS_VIEWS = (View("probs"), View("logits", finite_logit, torch.sigmoid))
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
            feasible=not_negative,
        ),
    )

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rate = compact(fn.rate)
        return (rate.log(),), rate

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        return -torch.lgamma(value + 1)
