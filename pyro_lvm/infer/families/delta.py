r"""Closed form of the Delta family: the point where it is.

A row has weight only where its value equals the point already, since elsewhere its density is zero: so the current
point is the value on which all weighted rows agree, and stays. An M-step that averaged those values could miss them
by a rounding, and lose every row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.rows import learned
from pyro_lvm.infer.m_step import Argument, ClosedForm, Statistics, View, closed_form
from pyro_lvm.ops.cells import compact

__all__: list[str] = []


class _Delta(ClosedForm):
    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        cells = compact(fn.v, fn.event_dim).shape[: len(fn.batch_shape)]
        return Statistics(cells, nothing=torch.full((*cells, *fn.event_shape), torch.nan, dtype=torch.float64))


@lru_cache
def _of(event_dim: int) -> ClosedForm:
    point = Argument(
        "v",
        lambda fn: compact(fn.v, event_dim),
        lambda statistics, current: (statistics["nothing"],),
        lambda nothing: nothing,
        (View("v"),),
        event_dim=event_dim,
    )
    return type("_DeltaOfEvents", (_Delta,), {"arguments": (point,)})()


@closed_form.register(dist.Delta)
def _(fn: Any) -> ClosedForm | None:
    return None if learned(fn.log_density) else _of(fn.event_dim)
