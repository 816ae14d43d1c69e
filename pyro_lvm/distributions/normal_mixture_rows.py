"""Rows that in each of K states come from a mixture of M normal laws."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.normal_rows import NormalRows, covariance_prior, loc_prior
from pyro_lvm.distributions.rows import Kind
from pyro_lvm.ops.clusters import member_moments
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import fill

__all__ = ["NormalMixtureRows"]

COVARIANCES = ("full", "diag", "spherical")


class NormalMixtureRows(NormalRows):
    """Mixtures of M normal laws.

    Args:
        caller: Who asks, for errors.
        num_components: M >= 1.
        covariance: "full", "diag" or "spherical".
        data_dim: d; None if the rows tell.

    Raises:
        ValueError: There is no such kind of covariance.
    """

    def __init__(self, caller: str, num_components: int, covariance: str, data_dim: int | None = None) -> None:
        if covariance not in COVARIANCES:
            raise ValueError(
                f"{caller}: expected covariance to be one of {', '.join(COVARIANCES)}; got {covariance!r}."
            )
        super().__init__(caller, covariance, data_dim)
        self.num_components = num_components

    @property
    def parameters(self) -> dict[str, Kind]:
        """Weights, then covariances and means, with an axis of components after that of states."""
        weights = {"weights": Kind(constraints.simplex, ("state", "component"))}
        rest = {name: Kind(kind.constraint, ("state", "component", *kind.axes[1:])) for name, kind in self._of_one}
        return {**weights, **rest}

    @property
    def _of_one(self) -> list[tuple[str, Kind]]:
        return list(super().parameters.items())

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        component = super().law(parameters, None if known is None else known.unsqueeze(-2))
        return dist.MixtureSameFamily(dist.Categorical(parameters["weights"]), component)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Moments of k-means clusters within each cluster."""
        k, m = members.shape[1], self.num_components
        filled, parts = fill(x)[0], torch.zeros(len(x), k, m).to(x)
        for state in range(k):
            inside = (members[:, state] > 0).nonzero().flatten()
            chosen = kmeans(filled[inside], m) if len(inside) >= m else torch.arange(len(inside)).to(x.device)
            parts[inside, state, chosen] = members[inside, state]
        weights, loc, within = member_moments(x, parts.flatten(1))
        share = parts.sum(0) + 1
        covariance = self.shaped(weights, within)
        return {
            "weights": share / share.sum(-1, keepdim=True),
            "loc": loc.unflatten(0, (k, m)),
            "covariance": covariance.unflatten(0, (k, m)),
        }

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start and a summary before any rows are there."""
        m = self.num_components
        start, summary = super().unseen(num_states)
        found = {name: value.unsqueeze(1).repeat_interleave(m, 1) for name, value in start.items()}
        return {"weights": torch.full((num_states, m), 1 / m), **found}, summary

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """As of normal rows; Dirichlet(1) for weights."""
        shape = (num_states, self.num_components)
        if name == "weights":
            return dist.Dirichlet(torch.ones(shape).to(summary["spread"])).to_event(1)
        if name == "covariance":
            return covariance_prior(self.covariance, summary["spread"], shape)
        return loc_prior(self.covariance, summary["centre"], model.covariance, shape)
