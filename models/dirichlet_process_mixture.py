r"""Dirichlet process mixture of normals, truncated: as many components as the rows ask for.

.. math::

    v_k &\sim \mathrm{Beta}(1, \alpha), \quad w_k = v_k \prod_{j < k} (1 - v_j) \\
    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \mathrm{Normal}(\mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions import StickBreaking
from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.mixture import Priors
from pyro_lvm.ops.clusters import cluster_moments
from pyro_lvm.ops.missing import column_moments
from pyro_lvm.ops.real_number import real_number

__all__ = ["DirichletProcessMixture"]

# What components without a cluster begin with, all together.
UNUSED = 1e-3


class DirichletProcessMixture(GaussianMixture):
    r"""Bayesian mixture of normals whose number of components is found, up to a truncation.

    ==================  ===================  =========================================  ============
    symbol              meaning              shape                                      code
    ==================  ===================  =========================================  ============
    :math:`v`           stick fractions      (T - 1,)                                   `fractions`
    :math:`\mu`         component means      (T, d)                                     `loc`
    :math:`\Sigma`      (co)variances        full (T, d, d); tied (d, d); diag (T, d);  `covariance`
                                             spherical (T,)
    ==================  ===================  =========================================  ============

    Components that the rows do not need keep their prior and a small weight; the last one takes what is left of the
    stick. Made for `inference="coordinate-ascent"`; SVI and NUTS take it too.

    Coordinate ascent empties components slowly and hardly ever fills empty ones, so where it ends depends on how many
    it starts with: a fit tries 1, 2, 4, ... T clusters, the other components at their prior, largest cluster first.

    Args:
        num_components: Truncation T >= 2: more than are expected.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full", "diag", "tied" or "spherical".
        concentration: :math:`\alpha > 0`; about :math:`\alpha \log(1 + n / \alpha)` components for n rows.
        priors: A dict that replaces some of the default priors, as in `GaussianMixture`; `fractions` among them.

    Raises:
        ValueError: An argument is out of range.

    References:
        D. Blei, M. Jordan (2006), Variational inference for Dirichlet process mixtures, Bayesian Analysis 1(1).

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.DirichletProcessMixture(10), x, inference="coordinate-ascent", seed=0)
        >>> int((fit.predict_proba(x).mean(0) > 0.05).sum())
        2
    """

    # the sticks are ordered: components are no labels to be permuted
    dims: ClassVar[dict[str, list[str]]] = {
        "fractions": ["stick"],
        "loc": ["atom", "dimension"],
        "covariance": ["atom", "dimension", "dimension_2"],
    }

    def __init__(
        self,
        num_components: int = 20,
        data_dim: int | None = None,
        covariance: str = "full",
        concentration: float = 1.0,
        priors: bool | Priors | None = True,
    ) -> None:
        if priors is None or priors is False:
            raise ValueError("DirichletProcessMixture: expected priors; got none. Use GaussianMixture without them.")
        self.concentration = real_number("DirichletProcessMixture", "concentration", concentration)
        self._num_clusters: int | None = None
        super().__init__(num_components, data_dim, covariance, priors)
        if self.num_components < 2:
            raise ValueError(f"DirichletProcessMixture: expected num_components >= 2; got {num_components}.")

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().config, "concentration": self.concentration}

    @property
    def starts(self) -> tuple[dict[str, Any], ...]:
        """Powers of two of clusters, and as many as there are components."""
        truncation = self.num_components
        return (*({"num_clusters": 2**i} for i in range((truncation - 1).bit_length())), {})

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None, num_clusters: int | None = None) -> None:
        """Start from k-means clusters of the rows; other seeds give other starts.

        Args:
            x: Rows, shape (n, d), NaN where missing.
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.
            num_clusters: Components that start with a cluster, from 1 to T; by default all of them.

        Raises:
            ValueError: A number of clusters out of range, and all that `GaussianMixture` raises.
        """
        if num_clusters is not None and not 1 <= num_clusters <= self.num_components:
            raise ValueError(
                f"DirichletProcessMixture: expected num_clusters from 1 to {self.num_components}; got {num_clusters}."
            )
        self._num_clusters = num_clusters
        super().initialize(x, sample_weights)

    def _start(self, x: Tensor, sample_weights: Tensor | None) -> None:
        clusters = cluster_moments(x, self._num_clusters or self.num_components, sample_weights)
        order = clusters[0].argsort(descending=True, stable=True)
        weights, loc, within = (moment[order] for moment in clusters)
        mean, variance = column_moments(x, sample_weights)
        rest = self.num_components - len(weights)
        if rest:
            share = variance.diag_embed() / self.num_components ** (2 / len(variance))
            weights = torch.cat([(1 - UNUSED) * weights, weights.new_full((rest,), UNUSED / rest)])
            loc, within = (torch.cat([a, b.expand(rest, *b.shape)]) for a, b in ((loc, mean), (within, share)))
        self._declare((mean, variance), weights, loc, within)

    def _mixing(self) -> Any:
        return StickBreaking(self.fractions)

    def _declare_mixing(self, weights: Tensor, priors: Priors) -> None:
        """Fractions of the stick that is left, cut so that no stick is empty or used up."""
        left = weights.flip(-1).cumsum(-1).flip(-1)
        fractions = (weights / left)[:-1].clamp(1e-3, 1 - 1e-3)
        self.declare("fractions", fractions, constraints.unit_interval, priors["fractions"])

    def _fractions_prior(self) -> Any:
        one = torch.ones(self.num_components - 1).to(self.prior_spread)
        return dist.Beta(one, self.concentration * one).to_event(1)

    default_priors: ClassVar[dict[str, Any]] = {
        "fractions": _fractions_prior,
        **{name: prior for name, prior in GaussianMixture.default_priors.items() if name != "weights"},
    }
