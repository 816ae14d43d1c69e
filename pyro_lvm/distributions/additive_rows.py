"""Rows whose normal law has a mean that adds up contributions of several states."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.distributions.rows import Kind, RowFamily
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import column_moments, fill

__all__ = ["AdditiveRows"]

# Prior scale of contributions in units of the data's spread: weak.
WIDE = 10.0


class AdditiveRows(RowFamily):
    r"""Independent normal columns, :math:`x_j \sim N(\sum_m W_{m, z_m, j}, s_j^2)`, in joint states of M chains.

    Args:
        num_chains: M.
        num_states: K, of each chain.
        data_dim: d; None if the rows tell.
    """

    def __init__(self, num_chains: int, num_states: int, data_dim: int | None = None) -> None:
        self.num_chains, self.num_states, self.data_dim = num_chains, num_states, data_dim

    @property
    def parameters(self) -> dict[str, Kind]:
        """Residual scales, contributions."""
        return {
            "scale": Kind(constraints.positive, ("dimension",)),
            "loc": Kind(constraints.real, ("chain", "state", "dimension")),
        }

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows, joint states along the last batch dimension, the last chain's counting fastest."""
        loc = reduce(lambda one, other: (one.unsqueeze(1) + other).flatten(0, 1), parameters["loc"].unbind(0))
        law = dist.Normal(loc, parameters["scale"])
        return (law if known is None else law.mask(known)).to_event(1)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Chain after chain, k-means clusters of what those before leave unexplained."""
        counts = members.sum(-1)
        rest = fill(x, counts)[0]
        found = []
        for _ in range(self.num_chains):
            chosen = torch.nn.functional.one_hot(kmeans(rest, self.num_states, sample_weights=counts), self.num_states)
            weights = chosen.to(rest) * counts.unsqueeze(-1)
            # an empty cluster contributes nothing
            found.append(weights.T @ rest / weights.sum(0).clamp_min(torch.finfo(rest.dtype).tiny).unsqueeze(-1))
            rest = rest - chosen.to(rest) @ found[-1]
        overall = column_moments(x, counts)[1]
        unexplained = counts @ rest.square() / counts.sum()
        # of what chains explain by chance, some is noise
        return {
            "scale": (unexplained + overall / self.num_states ** (2 * self.num_chains)).sqrt(),
            "loc": torch.stack(found),
        }

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start and a summary before any rows are there."""
        d = self.data_dim or 1
        start = {"scale": torch.ones(d), "loc": torch.zeros(self.num_chains, self.num_states, d)}
        return start, {"centre": torch.zeros(d), "spread": torch.ones(d)}

    def summary(self, x: Tensor, counts: Tensor, num_states: int) -> Arguments:
        """Mean and scale of the columns."""
        centre, variance = column_moments(x, counts)
        return {"centre": centre, "spread": variance.sqrt()}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """Weak priors with the scale of the data."""
        centre, spread = summary["centre"], summary["spread"]
        if name == "scale":
            return dist.LogNormal(spread.log(), torch.ones_like(spread)).to_event(1)
        law = dist.Normal(centre / self.num_chains, WIDE * spread)
        return law.expand([self.num_chains, self.num_states, len(centre)]).to_event(3)

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError for constant or empty columns."""
        check_real_columns(caller, x)
