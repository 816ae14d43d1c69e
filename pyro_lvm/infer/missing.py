r"""The M-step of normals from rows of which only some entries are known.

The arguments and what solves for them are those of the complete normal; only the statistics differ, and are the
expected ones given the known entries, at the parameters of the E-step:
:math:`\sum_n w_n \mathrm{E}[x_n \mid x_{n,o}]` and :math:`\sum_n w_n \mathrm{E}[x_n x_n^\top \mid x_{n,o}]`.

References:
    Z. Ghahramani, M. Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.distributions import PartialMultivariateNormal
from pyro_lvm.infer.families.multivariate_normal import COVARIANCE, LOC
from pyro_lvm.infer.families.normal import nonzero_variance
from pyro_lvm.infer.m_step import ClosedForm, Statistics, closed_form, closed_form_of
from pyro_lvm.infer.pattern_products import PatternProducts
from pyro_lvm.ops.cells import compact
from pyro_lvm.ops.missing import column_moments

__all__: list[str] = []


@closed_form_of(PartialMultivariateNormal)
class _PartialMultivariateNormal(ClosedForm):
    arguments = (LOC, COVARIANCE)

    def score(self, fn: Any, value: Tensor) -> Tensor | None:
        """By matrix products where few patterns of missing entries have many rows each."""
        products = PatternProducts.of(fn, value)
        density = None if products is None else products.log_density()
        return None if density is None else density.to(torch.result_type(fn.loc, value))

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        if not isinstance(fn, PartialMultivariateNormal):  # a complete batch, under a plan made on one with gaps
            return closed_form(fn).statistics(fn, value, weights, variance_floor)  # type: ignore[union-attr]
        seen = torch.where(compact(fn.known, 1), value, torch.nan).double()
        centre, variance = column_moments(seen.reshape(-1, seen.shape[-1]))
        products = PatternProducts.of(fn, value)
        if products is None:
            total, first, second = fn.expected_moments(value, weights, centre)
        else:
            total, first, second = products.expected_moments(weights, centre)
        floor = (variance_floor * nonzero_variance(variance, centre)).clamp_min(torch.finfo(fn.loc.dtype).tiny)
        return Statistics(
            total.shape,
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total.unsqueeze(-1),
            square=second,
            floor=floor.expand(*total.shape, -1),
        )
