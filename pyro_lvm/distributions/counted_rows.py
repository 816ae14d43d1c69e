"""Rows of counts that sum to a total: multinomial in each of K states."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.rows import Kind, RowFamily

__all__ = ["CountedRows"]


class CountedRows(RowFamily):
    """Multinomial rows; what they sum to is given, not modelled.

    Args:
        total_count: Number of trials of a row; None for any: the density is that of the counts given their sum.
        data_dim: d; None if the rows tell.
    """

    takes_gaps = False
    support = "counts 0, 1, 2, ..."
    other_support = "Pass whole numbers >= 0."

    def __init__(self, total_count: int | None = None, data_dim: int | None = None) -> None:
        self.total_count = total_count
        self.data_dim = data_dim

    @property
    def parameters(self) -> dict[str, Kind]:
        """Probabilities."""
        return {"probs": Kind(constraints.simplex, ("state", "dimension"))}

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        return dist.Multinomial(self.total_count or 1, parameters["probs"], validate_args=False)

    def contains(self, x: Tensor) -> Tensor:
        """Which entries are counts in rows with the right total."""
        whole = torch.isfinite(x) & (x >= 0) & (x == x.floor())
        if self.total_count is None:
            return whole
        total = x.sum(-1, keepdim=True)
        return whole & ((total == self.total_count) | total.isnan())

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Shares of clusters, each with one average row added."""
        x = x.nan_to_num(0.0)
        overall = members.sum(1) @ x / members.sum()
        counts = (members.T @ x + overall).clamp_min(0.5 / (float(members.sum()) + 1))
        return {"probs": counts / counts.sum(-1, keepdim=True)}

    def summary(self, x: Tensor, counts: Tensor, num_states: int) -> Arguments:
        """The largest total."""
        return {"total": x.nan_to_num(0.0).sum(-1).max()}

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start before any rows are there."""
        d = self.data_dim or 1
        return {"probs": torch.full((num_states, d), 1 / d)}, {"total": torch.tensor(self.total_count or 1)}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """Dirichlet(1)."""
        return dist.Dirichlet(torch.ones_like(model.initial_values[name])).to_event(1)

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError for rows of nothing but zeros."""
        if not bool((x.nan_to_num(0.0) > 0).any()):
            raise ValueError(f"{caller}: expected some counts above 0; got none. There is nothing to learn from.")
