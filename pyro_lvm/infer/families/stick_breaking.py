"""Closed form of stick-breaking probabilities: every fraction is a coin, thrown by the rows that came so far."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.distributions.stick_breaking import StickBreaking
from pyro_lvm.infer.families.counts import beta_counts, beta_posterior, expected_log_odds, ratio, within_total
from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__: list[str] = []


def _coins(statistics: Statistics, current: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Rows that stopped at each state, and rows that got at least so far."""
    counts = statistics["sum_0"]
    reached = counts.flip(-1).cumsum(-1).flip(-1)
    return counts[..., :-1], reached[..., :-1]


def _log_probs(here: Tensor, beyond: Tensor) -> Tensor:
    """Log-probabilities of all states from log v and log (1 - v)."""
    padded = torch.nn.functional.pad(here, (0, 1))
    return padded + torch.nn.functional.pad(beyond.cumsum(-1), (1, 0))


def _plug_in(q: Any) -> Tensor:
    """Fractions whose probabilities are proportional to the exponentials of the expected log-probabilities."""
    logits = _log_probs(*expected_log_odds(q))
    reached = logits.flip(-1).logcumsumexp(-1).flip(-1)
    return (logits - reached).exp()[..., :-1]


@closed_form_of(StickBreaking)
class _StickBreaking(ExponentialFamily):
    arguments = (
        Argument(
            "fractions",
            lambda fn: compact(fn.fractions, 1),
            _coins,
            ratio,
            (View("fractions"),),
            event_dim=1,
            conjugate={
                ("fractions", dist.Beta): Conjugate(
                    beta_counts,
                    beta_posterior,
                    _plug_in,
                    lambda q: _log_probs(*expected_log_odds(q)).logsumexp(-1),
                )
            },
            feasible=within_total,
        ),
    )

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((fn.logits.shape[-1],),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        counts = torch.zeros(fn.logits.shape[-1], *value.shape, dtype=torch.float64, device=value.device)
        return (counts.scatter_(0, value.long().unsqueeze(0), 1.0),)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        logits = StickBreaking(compact(fn.fractions, 1), validate_args=False).logits
        return (logits,), torch.zeros_like(logits[..., 0])
