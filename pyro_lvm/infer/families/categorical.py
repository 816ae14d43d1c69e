r"""Closed forms of the Categorical, OneHotCategorical and Multinomial families: expected counts.

.. math:: p_j = \frac{\sum_n w_n x_{nj}}{\sum_n w_n \sum_i x_{ni}}

References:
    C. Bishop (2006), Pattern Recognition and Machine Learning, equation 2.33.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import finite_log, positive_counts, probs_of
from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__ = ["PROBS", "log_probs_of", "softmax"]


def softmax(value: Tensor) -> Tensor:
    """Probabilities from logits."""
    return value.softmax(-1)


def expected_log_probs(q: Any) -> Tensor:
    """Expected log-probabilities under a Dirichlet distribution."""
    return torch.digamma(q.concentration) - torch.digamma(q.concentration.sum(-1, keepdim=True))


PROBS = Argument(
    "probs",
    lambda fn: probs_of(fn, 1, softmax),
    lambda statistics, current: (statistics["sum_0"],),
    lambda counts: counts / counts.sum(-1, keepdim=True),
    (View("probs", normalised="sum"), View("logits", finite_log, softmax, normalised="shift")),
    event_dim=1,
    conjugate={
        ("probs", dist.Dirichlet): Conjugate(
            lambda prior: (prior.concentration - 1,),
            lambda counts: dist.Dirichlet(counts + 1),
            lambda q: expected_log_probs(q).softmax(-1),
            lambda q: expected_log_probs(q).logsumexp(-1),
        )
    },
    feasible=positive_counts,
)


def log_probs_of(fn: Any) -> Tensor:
    """Normalised log-probabilities, finite as torch makes them if built from probabilities."""
    raw = compact(fn._param, 1)
    return raw if fn._param is fn.__dict__.get("logits") else torch.distributions.utils.probs_to_logits(raw)


@closed_form_of(torch.distributions.Categorical)
class _Categorical(ExponentialFamily):
    arguments = (PROBS,)

    def index(self, value: Tensor) -> Tensor | None:
        return value.long()

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((fn._param.shape[-1],),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        counts = torch.empty(fn._param.shape[-1], *value.shape, dtype=torch.float64, device=value.device)
        self.fill(value, fn, reference, (counts,))
        return (counts,)

    def fill(self, value: Tensor, fn: Any, reference: Reference | None, out: tuple[Tensor, ...]) -> None:
        out[0].zero_().scatter_(0, value.long().unsqueeze(0), 1.0)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = log_probs_of(fn)
        return (logits,), torch.zeros_like(logits[..., 0])


@closed_form_of(torch.distributions.OneHotCategorical)
class _OneHotCategorical(ExponentialFamily):
    arguments = (replace(PROBS, read=lambda fn: probs_of(fn._categorical, 1, softmax)),)
    event_dim = 1

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return (tuple(fn.event_shape),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = log_probs_of(fn._categorical)
        return (logits,), torch.zeros_like(logits[..., 0])


@closed_form_of(torch.distributions.Multinomial)
class _Multinomial(_OneHotCategorical):
    """Total counts are those of the rows, as in the density that torch computes."""

    arguments = (
        replace(
            _OneHotCategorical.arguments[0],  # the expected normalizer would count once for each trial: no plug-in
            conjugate={("probs", dist.Dirichlet): Conjugate(lambda prior: (prior.concentration - 1,))},
        ),
    )

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        return torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
