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

__all__ = ["DirichletProcessMixture"]


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
        if not concentration > 0:
            raise ValueError(f"DirichletProcessMixture: expected concentration > 0; got {concentration}.")
        if priors is None or priors is False:
            raise ValueError("DirichletProcessMixture: expected priors; got none. Use GaussianMixture without them.")
        self.concentration = float(concentration)
        super().__init__(num_components, data_dim, covariance, priors)
        if self.num_components < 2:
            raise ValueError(f"DirichletProcessMixture: expected num_components >= 2; got {num_components}.")

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().config, "concentration": self.concentration}

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
