r"""Gaussian mixture: every row comes from one of K normal distributions.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \mathrm{Normal}(\mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions import InverseWishart, PartialMultivariateNormal
from pyro_lvm.models.mixture import Mixture, Priors
from pyro_lvm.models.real_mixture import Moments, RealMixture
from pyro_lvm.ops.missing import fill

__all__ = ["GaussianMixture"]

AXES = {
    "full": ["component", "dimension", "dimension_2"],
    "diag": ["component", "dimension"],
    "tied": ["dimension", "dimension_2"],
    "spherical": ["component"],
}


class GaussianMixture(RealMixture):
    r"""Mixture of K multivariate normal distributions.

    ==================  ===================  =========================================  ============
    symbol              meaning              shape                                      code
    ==================  ===================  =========================================  ============
    :math:`w`           mixture weights      (K,)                                       `weights`
    :math:`\mu`         component means      (K, d)                                     `loc`
    :math:`\Sigma`      (co)variances        full (K, d, d); tied (d, d); diag (K, d);  `covariance`
                                             spherical (K,)
    ==================  ===================  =========================================  ============

    Without priors the parameters are point estimates (`PyroParam`). With priors they are sample sites, and the same
    program is Bayesian: :math:`w \sim` Dirichlet, :math:`\mu_k \mid \Sigma_k \sim` Normal,
    :math:`\Sigma_k \sim` inverse-Wishart (full, tied) or inverse-gamma (diag, spherical). The default priors are weak
    and scaled by the data, as in scikit-learn.

    NaN in the rows means missing at random: a row's density is the exact marginal of its known entries, and
    `fit.impute(x)` fills in the rest.

    Args:
        num_components: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full", "diag", "tied" or "spherical". Variances, not standard deviations.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.

    References:
        C. Bishop (2006), Pattern Recognition and Machine Learning, equations 9.7 to 9.28 and 10.38 to 10.41.
        Z. Ghahramani, M. Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, progress=False)
        >>> round(fit.score(x) * len(x), 3)
        -1130.264
    """

    handles_missing: ClassVar[bool] = True
    dims: ClassVar[dict[str, list[str]]] = {
        "weights": ["component"],
        "loc": ["component", "dimension"],
        "covariance": ["component", "dimension", "dimension_2"],
    }

    def __init__(
        self,
        num_components: int,
        data_dim: int | None = None,
        covariance: str = "full",
        priors: bool | Priors | None = None,
    ) -> None:
        super().__init__(num_components, data_dim, priors)
        if covariance not in AXES:
            raise ValueError(f"{self._name}: expected covariance to be one of {', '.join(AXES)}; got {covariance!r}.")
        unknown = set(priors) - set(self.dims) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"{self._name}: expected priors for {', '.join(self.dims)}; got {', '.join(sorted(unknown))}."
            )
        self.covariance_type = covariance
        self.dims = {**self.dims, "covariance": AXES[covariance]}  # type: ignore[misc]  # depends on its kind
        self._declare_unseen()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "num_components": self.num_components,
            "data_dim": self.data_dim,
            "covariance": self.covariance_type,
            "priors": self.priors,
        }

    def _parameters_of_components(self) -> dict[str, Tensor]:
        return {"covariance": self.covariance, "loc": self.loc}

    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        x, known = (None, None) if x is None else fill(x)
        return pyro.sample("x", self._component(parameters["loc"][z], parameters["covariance"], z, known), obs=x)

    def _component(self, loc: Tensor, covariance: Tensor, z: Tensor, known: Tensor | None = None) -> Any:
        """The normal law of rows from the components `z`, or of their known entries."""
        if self.covariance_type in ("full", "tied"):
            covariance = covariance[z] if self.covariance_type == "full" else covariance
            if known is None:
                return dist.MultivariateNormal(loc, covariance_matrix=covariance)
            return PartialMultivariateNormal(loc, covariance, known)
        variance = covariance[z]
        if self.covariance_type == "spherical":
            variance = variance.unsqueeze(-1)
        normal = dist.Normal(loc, variance.sqrt())
        return (normal if known is None else normal.mask(known)).to_event(1)

    def _declare(self, moments: Moments, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the three parameters at the given start, with the priors that the data's scale suggests."""
        (mean, variance), (k, d) = moments, loc.shape
        diagonal = within.diagonal(dim1=-2, dim2=-1)
        start = {
            "full": within,
            "tied": (weights[:, None, None] * within).sum(0),
            "diag": diagonal,
            "spherical": diagonal.mean(-1),
        }[self.covariance_type]
        matrix = self.covariance_type in ("full", "tied")
        given = self.priors if isinstance(self.priors, dict) else {}
        default = type(self).default_priors if self.priors else {}
        priors = {**default, **given}
        self.register_buffer("prior_centre", mean)
        self.register_buffer("prior_spread", variance / k ** (2 / d))
        self._declare_mixing(weights, priors)
        positive = constraints.positive_definite if matrix else constraints.positive
        self.declare("covariance", start, positive, priors.get("covariance"))
        self.declare("loc", loc, constraints.real, priors.get("loc"))

    def _declare_mixing(self, weights: Tensor, priors: Priors) -> None:
        self.declare("weights", weights, constraints.simplex, priors.get("weights"))

    def _covariance_prior(self) -> Any:
        """A prior worth about one row per component, its scale that of the data shared among K components."""
        spread, k = self.prior_spread, self.num_components
        d = len(spread)
        if self.covariance_type == "full":
            return InverseWishart(torch.tensor(d + 2.0).to(spread), spread.diag_embed()).expand([k]).to_event(1)
        if self.covariance_type == "tied":
            return InverseWishart(torch.tensor(d + 2.0).to(spread), spread.diag_embed())
        half = torch.tensor(0.5).to(spread)
        if self.covariance_type == "diag":
            return dist.InverseGamma(3 * half, half * spread).expand([k, d]).to_event(2)
        return dist.InverseGamma(3 * half, half * spread.mean()).expand([k]).to_event(1)

    def _loc_prior(self) -> Any:
        """Normal around the data's mean with 100 times the component's covariance."""
        covariance, shape = 100 * self.covariance, (self.num_components, len(self.prior_centre))
        if self.covariance_type in ("full", "tied"):
            prior = dist.MultivariateNormal(self.prior_centre, covariance_matrix=covariance)
            return prior.expand(shape[:1]).to_event(1)
        variance = covariance if self.covariance_type == "diag" else covariance.unsqueeze(-1)
        return dist.Normal(self.prior_centre, variance.sqrt()).expand(shape).to_event(2)

    default_priors: ClassVar[dict[str, Any]] = {
        "weights": Mixture._weights_prior,
        "covariance": _covariance_prior,
        "loc": _loc_prior,
    }
