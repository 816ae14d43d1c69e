"""Normal laws of rows in each of K states, with full, diagonal, shared or spherical covariances."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments
from pyro_lvm.distributions.inverse_wishart import InverseWishart
from pyro_lvm.distributions.partial_multivariate_normal import PartialMultivariateNormal
from pyro_lvm.distributions.rows import Kind, RowFamily
from pyro_lvm.ops.clusters import member_moments
from pyro_lvm.ops.missing import column_moments, has_gaps

__all__ = ["NormalRows", "check_real_columns", "covariance_prior", "loc_prior"]

# Of the largest and smallest number: room for variances of components, and for sums over rows.
MARGIN = 1e-8


class NormalRows(RowFamily):
    """Multivariate normal rows.

    Args:
        covariance: "full", "diag", "tied" or "spherical".
        data_dim: d; None if the rows tell.

    Raises:
        ValueError: There is no such kind of covariance.
    """

    AXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "full": ("state", "dimension", "dimension_2"),
        "diag": ("state", "dimension"),
        "tied": ("dimension", "dimension_2"),
        "spherical": ("state",),
    }

    def __init__(self, caller: str, covariance: str, data_dim: int | None = None) -> None:
        if covariance not in self.AXES:
            raise ValueError(f"{caller}: expected covariance to be one of {', '.join(self.AXES)}; got {covariance!r}.")
        self.covariance = covariance
        self.data_dim = data_dim

    @property
    def is_matrix(self) -> bool:
        """Whether the covariance is stored as a matrix."""
        return self.covariance in ("full", "tied")

    @property
    def parameters(self) -> dict[str, Kind]:
        """Covariances, then means, whose prior depends on them."""
        constraint = constraints.positive_definite if self.is_matrix else constraints.positive
        return {
            "covariance": Kind(constraint, self.AXES[self.covariance]),
            "loc": Kind(constraints.real, ("state", "dimension")),
        }

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        loc, covariance = parameters["loc"], parameters["covariance"]
        if self.is_matrix:
            if known is None:
                return dist.MultivariateNormal(loc, covariance_matrix=covariance)
            return PartialMultivariateNormal(loc, covariance, known)
        variance = covariance.unsqueeze(-1) if self.covariance == "spherical" else covariance
        normal = dist.Normal(loc, variance.sqrt())
        return (normal if known is None else normal.mask(known)).to_event(1)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Estimates by cluster."""
        weights, loc, within = member_moments(x, members)
        return {"loc": loc, "covariance": self.shaped(weights, within)}

    def shaped(self, weights: Tensor, within: Tensor) -> Tensor:
        """Covariances as stored, of matrices (K, d, d) with shares (K,)."""
        if self.covariance == "full":
            return within
        if self.covariance == "tied":
            return (weights[:, None, None] * within).sum(0)
        diagonal = within.diagonal(dim1=-2, dim2=-1)
        return diagonal if self.covariance == "diag" else diagonal.mean(-1)

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start before any rows are there."""
        d = self.data_dim or 1
        weights = torch.full((num_states,), 1 / num_states)
        covariance = self.shaped(weights, torch.eye(d).expand(num_states, -1, -1))
        summary = {"centre": torch.zeros(d), "spread": torch.ones(d) / num_states ** (2 / d)}
        return {"loc": torch.zeros(num_states, d), "covariance": covariance}, summary

    def summary(self, x: Tensor, counts: Tensor, num_states: int) -> Arguments:
        """The columns' mean and K-th share of their variance: priors have the scale of the data."""
        _, centre, within = member_moments(x, counts.unsqueeze(-1))
        return {"centre": centre[0], "spread": within[0].diagonal() / num_states ** (2 / x.shape[1])}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """A weak prior."""
        centre, spread = summary["centre"], summary["spread"]
        if name == "covariance":
            return covariance_prior(self.covariance, spread, (num_states,))
        return loc_prior(self.covariance, centre, model.covariance, (num_states,))

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError if rows are not enough to learn from."""
        check_real_columns(caller, x)


def covariance_prior(kind: str, spread: Tensor, shape: tuple[int, ...]) -> Any:
    """A prior worth about one row per component, its scale that of the data shared among the components.

    Args:
        kind: "full", "diag", "tied" or "spherical".
        spread: Variances of the columns, divided among components, shape (d,).
        shape: How many components there are.
    """
    d, depth = len(spread), len(shape)
    if kind in ("full", "tied"):
        wishart = InverseWishart(torch.tensor(d + 2.0).to(spread), spread.diag_embed())
        return wishart if kind == "tied" else wishart.expand(shape).to_event(depth)
    half = torch.tensor(0.5).to(spread)
    if kind == "diag":
        return dist.InverseGamma(3 * half, half * spread).expand([*shape, d]).to_event(depth + 1)
    return dist.InverseGamma(3 * half, half * spread.mean()).expand(shape).to_event(depth)


def loc_prior(kind: str, centre: Tensor, covariance: Tensor, shape: tuple[int, ...]) -> Any:
    """Normal around the data's mean with 100 times the component's covariance.

    Args:
        kind: As for `covariance_prior`.
        centre: Mean of the columns, shape (d,).
        covariance: That of the components, as stored.
        shape: How many components there are.
    """
    depth = len(shape)
    if kind in ("full", "tied"):
        prior = dist.MultivariateNormal(centre, covariance_matrix=100 * covariance)
        return prior.expand(shape).to_event(depth)
    variance = covariance.unsqueeze(-1) if kind == "spherical" else covariance
    return dist.Normal(centre, (100 * variance).sqrt()).expand([*shape, len(centre)]).to_event(depth + 1)


def check_real_columns(caller: str, x: Tensor, constants: bool = False) -> None:
    """Raise a ValueError for constant or empty columns, which normals cannot be fitted to.

    Args:
        caller: Who asks, for the error.
        x: Rows, shape (n, d), NaN where missing.
        constants: Whether some columns may be constant, as their noise is not learned.

    Raises:
        ValueError: The likelihood of such rows has no maximum.
    """
    if len(x) and not has_gaps(x):
        least, most = x.aminmax(dim=0)
    else:
        least, most = (torch.where(x.isnan(), sign * torch.inf, x) for sign in (1, -1))
        least, most = least.amin(0), most.amax(0)
    unknown = (least > most).nonzero().flatten().tolist()
    if unknown:
        raise ValueError(
            f"{caller}: expected columns with known entries; all of column {unknown[0]} is missing (NaN). Drop it."
        )
    same = least == most
    constant = same.nonzero().flatten().tolist()
    if constants and bool(same.all()):
        raise ValueError(f"{caller}: expected rows that differ; got {len(x)} equal ones. Add others.")
    if constant and not constants:
        raise ValueError(
            f"{caller}: expected columns that vary; got constant column {constant[0]} "
            f"(always {least[constant[0]].item():g}), whose likelihood is unbounded. Drop it."
        )
    limits = torch.finfo(x.dtype)
    variance = column_moments(x)[1]
    held = (variance > limits.tiny / MARGIN) & (variance < limits.max * MARGIN)
    lost = (~(held | same)).nonzero().flatten().tolist()
    if lost:
        spread = 0.5 * (most - least)[lost[0]].item()
        raise ValueError(
            f"{caller}: expected columns whose variance {str(x.dtype).removeprefix('torch.')} can hold; got "
            f"column {lost[0]}, which varies by about {spread:.0e}. Rescale it."
        )
