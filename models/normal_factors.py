"""Linear factors that are normal: they may be turned, and can be summed out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.linear_gaussian_rows import LinearGaussianRows
from pyro_lvm.models.linear_factors import LinearFactors
from pyro_lvm.ops.factor_parts import canonical
from pyro_lvm.ops.missing import has_gaps
from pyro_lvm.ops.normal_moments import NormalMoments

__all__ = ["NormalFactors"]

Priors = dict[str, Any]


class NormalFactors(LinearFactors):
    r"""Base of the models :math:`x_n = b + W h_n + \epsilon_n` with :math:`h_n \sim \mathrm{Normal}(0, I)`.

    Args:
        num_factors: k >= 1, at most the number of columns.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one. Parameters are then sample sites, and so is
            `relevance`, the precision of each factor's loadings (automatic relevance determination); the factors
            themselves are summed out.

    Attributes:
        hidden: Layers that encoders need: none, as the posterior's mean is affine in the row.

    Raises:
        ValueError: An argument is out of range.

    References:
        C. Bishop (1999), Variational principal components, ICANN: relevance by priors of columns of W.
    """

    dims: ClassVar[dict[str, list[str]]] = {**LinearFactors.dims, "relevance": ["factor"]}
    latent_site: ClassVar[str] = "h"
    hidden: ClassVar[tuple[int, ...]] = ()

    def __init__(self, num_factors: int, data_dim: int | None = None, priors: bool | Priors | None = None) -> None:
        super().__init__(num_factors, data_dim)
        self.priors = priors
        laws = priors.values() if isinstance(priors, dict) else ()
        if not (priors is None or isinstance(priors, (bool, dict))) or not all(map(callable, laws)):
            raise ValueError(
                f"{self._name}: expected priors to be None, True or a dict of distributions, or functions of the model "
                f"that return one, by parameter; got {priors!r}."
            )
        unknown = set(priors) - set(self.dims) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"{self._name}: expected priors for {', '.join(self.dims)}; got {', '.join(sorted(unknown))}."
            )
        if self.data_dim is not None:
            noise = torch.ones(self.data_dim if self.dims["noise_scale"] else ())
            self._declare_parts(torch.zeros(self.data_dim), torch.eye(self.data_dim, self.num_factors), noise)

    def _observe(self, x: Tensor | None, rows: int, weight: Tensor, loc: Tensor, noise_scale: Tensor | float) -> Tensor:
        """The rows; with priors the factors are summed out."""
        if not self.priors:
            return super()._observe(x, rows, weight, loc, noise_scale)
        return pyro.sample("x", LinearGaussianRows(loc, weight, torch.as_tensor(noise_scale)), obs=x)

    @abstractmethod
    def _parts(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable map and noise variances of rows with this covariance."""

    @property
    def latent_dim(self) -> int:
        """How many factors there are."""
        return self.num_factors

    @property
    def centre(self) -> Tensor:
        """Where rows were at the start, shape (d,)."""
        return self.prior_centre

    @property
    def spread(self) -> Tensor:
        """How far they spread then, shape (d,)."""
        return self.prior_spread

    def fixed_entries(self, name: str) -> int:
        """What a rotation makes zero of the loadings."""
        return self.num_factors * (self.num_factors - 1) // 2 if name == "weight" else 0

    def condensed(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """With the factors summed out, 2 d weighted rows of the same mean and covariance, if none has gaps."""
        x, counts = (*args, kwargs.get("x"))[0], kwargs.get("sample_weights")
        if not self.priors or len(x) <= 2 * x.shape[1] or has_gaps(x):
            return args, kwargs
        moments = NormalMoments.of_rows(x.double(), None if counts is None else counts.double())
        points = moments.points().to(x)
        return (points,), {"sample_weights": (moments.total / len(points)).to(x).expand(len(points))}

    def canonicalise(self) -> None:
        """Turn the factors: columns of `weight` by how much they tell of the rows, with agreed signs."""
        if not self.priors:
            with torch.no_grad():
                self.weight.copy_(canonical(self.weight, self.noise_scale.square()))

    def _declare(self, mean: Tensor, covariance: Tensor) -> None:
        self._declare_parts(mean, *self._parts(covariance))

    def _declare_parts(self, mean: Tensor, weight: Tensor, noise: Tensor) -> None:
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
