"""Student's t laws of rows in each of K states."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.normal_rows import check_real_columns, covariance_prior, loc_prior
from pyro_lvm.distributions.rows import Kind, RowFamily
from pyro_lvm.ops.clusters import member_moments

__all__ = ["START", "StudentTRows"]

COVARIANCES = ("full", "diag")

# Where learned degrees of freedom start: tails far from both the normal's and Cauchy's.
START = 10.0


class StudentTRows(RowFamily):
    """Multivariate Student's t rows ("full"), or rows of independent t variables ("diag").

    Args:
        caller: Who asks, for errors.
        covariance: "full" or "diag".
        degrees_of_freedom: A number > 0 for all states, or None to learn one for each.
        data_dim: d; None if the rows tell.

    Raises:
        ValueError: An argument is out of range.
    """

    takes_gaps = False

    def __init__(
        self, caller: str, covariance: str, degrees_of_freedom: float | None = None, data_dim: int | None = None
    ) -> None:
        if covariance not in COVARIANCES:
            raise ValueError(
                f"{caller}: expected covariance to be one of {', '.join(COVARIANCES)}; got {covariance!r}."
            )
        if degrees_of_freedom is not None and not 0 < degrees_of_freedom < torch.inf:
            raise ValueError(
                f"{caller}: expected degrees_of_freedom > 0 and finite; got {degrees_of_freedom}. "
                "Pass None to learn them."
            )
        self.covariance = covariance
        self.degrees_of_freedom = degrees_of_freedom
        self.data_dim = data_dim

    @property
    def parameters(self) -> dict[str, Kind]:
        """Scale, squared; centre; and degrees of freedom unless they are given."""
        full = self.covariance == "full"
        axes = ("state", "dimension", "dimension_2") if full else ("state", "dimension")
        found = {
            "scale": Kind(constraints.positive_definite if full else constraints.positive, axes),
            "loc": Kind(constraints.real, ("state", "dimension")),
        }
        if self.degrees_of_freedom is None:
            found["degrees_of_freedom"] = Kind(constraints.positive, ("state",))
        return found

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        loc, scale = parameters["loc"], parameters["scale"]
        df = parameters.get("degrees_of_freedom")
        df = loc.new_full(loc.shape[:1], self.degrees_of_freedom or 0.0) if df is None else df
        if self.covariance == "full":
            return dist.MultivariateStudentT(df, loc, torch.linalg.cholesky(scale))
        return dist.StudentT(df.unsqueeze(-1), loc, scale.sqrt()).to_event(1)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Moments of clusters."""
        weights, loc, within = member_moments(x, members)
        scale = within if self.covariance == "full" else within.diagonal(dim1=-2, dim2=-1)
        return self._with_tails({"loc": loc, "scale": scale}, weights)

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start before any rows are there."""
        d = self.data_dim or 1
        scale = torch.eye(d) if self.covariance == "full" else torch.ones(d)
        found = {"loc": torch.zeros(num_states, d), "scale": scale.expand(num_states, *scale.shape)}
        summary = {"centre": torch.zeros(d), "spread": torch.ones(d) / num_states ** (2 / d)}
        return self._with_tails(found, torch.ones(num_states)), summary

    def _with_tails(self, found: Arguments, like: Tensor) -> Arguments:
        if self.degrees_of_freedom is None:
            found["degrees_of_freedom"] = torch.full_like(like, START)
        return found

    def summary(self, x: Tensor, counts: Tensor, num_states: int) -> Arguments:
        """The columns' mean and K-th share of their variance: priors have the scale of the data."""
        _, centre, within = member_moments(x, counts.unsqueeze(-1))
        return {"centre": centre[0], "spread": within[0].diagonal() / num_states ** (2 / x.shape[1])}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """As of normal rows; for degrees of freedom Gamma(2, 0.1), after Juarez and Steel (2010)."""
        if name == "scale":
            return covariance_prior(self.covariance, summary["spread"], (num_states,))
        if name == "loc":
            return loc_prior(self.covariance, summary["centre"], model.scale, (num_states,))
        two = torch.full((num_states,), 2.0).to(summary["spread"])
        return dist.Gamma(two, two / 20).to_event(1)

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError for constant or empty columns."""
        check_real_columns(caller, x)
