"""Closed forms of families on the positive numbers: Exponential."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.counts import RATE_VIEWS, not_negative, sum_and_total
from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, View, closed_form_of
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
            feasible=not_negative,
        ),
    )

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        return (value,)

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        rate = compact(fn.rate)
        return (-rate,), -rate.log()
