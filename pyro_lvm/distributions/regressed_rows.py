"""Rows that in each of K states are a linear regression on covariates."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.distributions.rows import Kind, RowFamily
from pyro_lvm.ops.regressions import member_regressions

__all__ = ["RegressedRows"]

# Prior scale of slopes in standardised units: weak.
WIDE = 10.0


class RegressedRows(RowFamily):
    r"""Independent normal columns with means linear in covariates, :math:`x_j \sim N(B_{kj} u + b_{kj}, s_{kj}^2)`.

    Args:
        data_dim: d; None if the rows tell.
        covariate_dim: q; None if the covariates tell.
        axis: Name of the axis of covariates.
    """

    def __init__(self, data_dim: int | None = None, covariate_dim: int | None = None, axis: str = "covariate") -> None:
        self.data_dim, self.covariate_dim, self.axis = data_dim, covariate_dim, axis

    @property
    def parameters(self) -> dict[str, Kind]:
        """Residual scales, slopes, intercepts."""
        return {
            "scale": Kind(constraints.positive, ("state", "dimension")),
            "coefficients": Kind(constraints.real, ("state", "dimension", self.axis)),
            "intercept": Kind(constraints.real, ("state", "dimension")),
        }

    def law(self, parameters: Arguments, known: Tensor | None, covariates: Tensor | None = None) -> Any:
        """The distribution of rows.

        Args:
            parameters: By name, states first.
            known: Which entries are there; None if all are.
            covariates: What they are explained by, batch + (q,).
        """
        if covariates is None:
            raise ValueError("RegressedRows.law: expected covariates.")
        coefficients = parameters["coefficients"]
        slopes = torch.einsum("kdq,...q->...kd", coefficients, covariates.to(coefficients))
        law = dist.Normal(slopes + parameters["intercept"], parameters["scale"])
        return (law if known is None else law.mask(known)).to_event(1)

    def start(self, x: Tensor, members: Tensor, covariates: Tensor | None = None) -> Arguments:
        """Regressions of clusters on covariates, shape (n, q)."""
        covariates = x.new_zeros(len(x), 0) if covariates is None else covariates
        coefficients, intercept, scale = member_regressions(x, covariates, members)
        return {"scale": scale, "coefficients": coefficients, "intercept": intercept}

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start and a summary before any rows are there."""
        k, d, q = num_states, self.data_dim or 1, self.covariate_dim or 1
        start = {"scale": torch.ones(k, d), "coefficients": torch.zeros(k, d, q), "intercept": torch.zeros(k, d)}
        return start, {"centre": torch.zeros(d), "spread": torch.ones(d), "covariate_spread": torch.ones(q)}

    def summary(self, x: Tensor, counts: Tensor, num_states: int, covariates: Tensor | None = None) -> Arguments:
        """Mean and scale of the columns, and the scale of the covariates, shape (n, q)."""
        covariates = x.new_zeros(len(x), 0) if covariates is None else covariates
        share = counts / counts.sum()
        known = ~x.isnan()
        value = torch.where(known, x, 0.0)
        centre = share @ value / (share @ known.to(x))
        spread = (share @ (known * (value - centre)).square() / (share @ known.to(x))).sqrt()
        wide = (share @ (covariates - share @ covariates).square()).sqrt()
        return {"centre": centre, "spread": spread, "covariate_spread": torch.where(wide > 0, wide, 1.0)}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """Weak priors with the scale of the data."""
        centre, spread = summary["centre"], summary["spread"]
        if name == "scale":
            return dist.LogNormal(spread.log(), torch.ones_like(spread)).expand([num_states, len(spread)]).to_event(2)
        if name == "intercept":
            return dist.Normal(centre, WIDE * spread).expand([num_states, len(spread)]).to_event(2)
        wide = WIDE * spread.unsqueeze(-1) / summary["covariate_spread"]
        return dist.Normal(torch.zeros_like(wide), wide).expand([num_states, *wide.shape]).to_event(3)

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError for constant or empty columns."""
        check_real_columns(caller, x)
