"""What linear factor models share: rows are an affine map of a few independent factors, with independent noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.linear_gaussian_rows import LinearGaussianRows
from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.distributions.standard_normal import standard_normal
from pyro_lvm.ops.factor_parts import canonical
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.row_checks import check_matrix
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["LinearFactors"]

Priors = dict[str, Any]


class LinearFactors(LatentVariableModel):
    r"""Base of the models :math:`x_n = b + W h_n + \epsilon_n` with standard normal factors and normal noise.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one. Parameters are then sample sites, and so is
            `relevance`, the precision of each factor's loadings (automatic relevance determination); the factors
            themselves are summed out.

    Raises:
        ValueError: An argument is out of range.
    """

    handles_missing: ClassVar[bool] = True
    dims: ClassVar[dict[str, list[str]]] = {
        "weight": ["column", "factor"],
        "loc": ["column"],
        "noise_scale": ["column"],
        "relevance": ["factor"],
    }

    def __init__(self, num_factors: int, data_dim: int | None = None, priors: bool | Priors | None = None) -> None:
        super().__init__()
        self.priors = priors
        unknown = set(priors) - set(self.dims) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"{self._name}: expected priors for {', '.join(self.dims)}; got {', '.join(sorted(unknown))}."
            )
        self.num_factors = whole_number(self._name, "num_factors", num_factors)
        self.data_dim = None if data_dim is None else whole_number(self._name, "data_dim", data_dim)
        if self.data_dim is not None:
            noise = torch.ones(self.data_dim if self.dims["noise_scale"] else ())
            self._declare(torch.zeros(self.data_dim), torch.eye(self.data_dim, self.num_factors), noise)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(self, x: Float[Tensor, "n d"] | None = None, *, size: int | None = None) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d), NaN where missing; None to generate.
            size: Number of rows to generate.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: There are neither rows nor a size.
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected rows x or a size to generate; got neither.")
        weight, loc, scale = self.weight, self.loc, self.noise_scale
        n: Any = size if x is None else len(x)
        with pyro.plate("data", n):
            if self.priors:  # a posterior of parameters is found far sooner without that of all rows' factors
                return pyro.sample("x", LinearGaussianRows(loc, weight, scale), obs=x)
            h = pyro.sample("h", standard_normal(n, self.num_factors, loc))
            law = dist.Normal(loc + h @ weight.mT, scale)
            if x is None or not bool(x.sum().isnan()):
                return pyro.sample("x", law.to_event(1), obs=x)
            return pyro.sample("x", law.mask(~x.isnan()).to_event(1), obs=torch.where(x.isnan(), loc.detach(), x))

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right number of columns."""
        check_matrix(self._name, x, self.data_dim)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows, constant or empty columns, or fewer columns than factors."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"{self._name}: expected at least 2 rows to learn from; got {len(x)}. Add rows.")
        if x.shape[1] < self.num_factors:
            raise ValueError(
                f"{self._name}: expected at most as many factors as columns ({x.shape[1]}); got {self.num_factors}. "
                "Lower num_factors."
            )
        check_real_columns(self._name, x)

    def initialize(self, x: Tensor) -> None:
        """Start at the most probable parameters of rows without gaps; with gaps, of their moments by pairs of columns.

        Args:
            x: Rows, shape (n, d), NaN where missing.

        Raises:
            ValueError: Rows do not fit the model.
        """
        self.check_training(x)
        self.data_dim = x.shape[1]
        mean, variance = (part.to(x) for part in column_moments(x.double()))
        centred = torch.where(x.isnan(), 0.0, x - mean)
        covariance = centred.mT @ centred / len(x)
        share = (variance / covariance.diagonal().clamp_min(torch.finfo(x.dtype).tiny)).sqrt()  # gaps shrink variances
        self._declare(mean, *self._parts(covariance * share * share.unsqueeze(-1)))

    @abstractmethod
    def _parts(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable map and noise variances of rows with this covariance."""

    def fixed_entries(self, name: str) -> int:
        """What a rotation makes zero of the loadings."""
        return self.num_factors * (self.num_factors - 1) // 2 if name == "weight" else 0

    def canonicalise(self) -> None:
        """Turn the factors: columns of `weight` by how much they tell of the rows, with agreed signs."""
        if not self.priors:
            with torch.no_grad():
                self.weight.copy_(canonical(self.weight, self.noise_scale.square()))

    def _declare(self, mean: Tensor, weight: Tensor, noise: Tensor) -> None:
        given = self.priors if isinstance(self.priors, dict) else {}
        priors = {**(self.default_priors if self.priors else {}), **given}
        variance = weight.square().sum(-1) + noise
        self.register_buffer("prior_centre", mean)
        self.register_buffer("prior_spread", variance.sqrt())
        if priors:
            ones = torch.ones(self.num_factors).to(mean)
            self.declare("relevance", ones, constraints.positive, priors.get("relevance"))
        self.declare("weight", weight, constraints.real, priors.get("weight"))
        self.declare("loc", mean, constraints.real, priors.get("loc"))
        self.declare("noise_scale", noise.sqrt(), constraints.positive, priors.get("noise_scale"))

    def _relevance_prior(self) -> Any:
        centre = self.prior_centre.new_full((self.num_factors,), 3.0)  # loadings of .03 to 1.6 standard deviations
        return dist.LogNormal(centre, 2.0).to_event(1)

    def _weight_prior(self) -> Any:
        scale = self.prior_spread.unsqueeze(-1) * self.relevance.rsqrt()
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)

    def _loc_prior(self) -> Any:
        return dist.Normal(self.prior_centre, self.prior_spread).to_event(1)

    def _noise_prior(self) -> Any:
        spread = self.prior_spread if self.dims["noise_scale"] else self.prior_spread.square().mean().sqrt()
        law = dist.LogNormal((spread / 2).log(), 1.0)
        return law.to_event(spread.dim())

    default_priors: ClassVar[dict[str, Any]] = {
        "relevance": _relevance_prior,
        "weight": _weight_prior,
        "loc": _loc_prior,
        "noise_scale": _noise_prior,
    }
