r"""Gaussian mixture: every row comes from one of K normal distributions.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \mathrm{Normal}(\mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.normal_rows import NormalRows, covariance_prior, loc_prior
from pyro_lvm.models.mixture import Mixture, Priors
from pyro_lvm.models.real_mixture import Moments, RealMixture
from pyro_lvm.ops.missing import fill

__all__ = ["GaussianMixture"]


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
        self._rows = NormalRows(self._name, covariance)
        unknown = set(priors) - set(self.dims) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"{self._name}: expected priors for {', '.join(self.dims)}; got {', '.join(sorted(unknown))}."
            )
        self.covariance_type = covariance
        axes = ["component" if axis == "state" else axis for axis in self._rows.parameters["covariance"].axes]
        self.dims = {**self.dims, "covariance": axes}  # type: ignore[misc]  # depends on its kind
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
        covariance = parameters["covariance"] if self.covariance_type == "tied" else parameters["covariance"][z]
        component = self._rows.law({"loc": parameters["loc"][z], "covariance": covariance}, known)
        return pyro.sample("x", component, obs=x)

    def _declare(self, moments: Moments, weights: Tensor, loc: Tensor, within: Tensor) -> None:
        """Create the three parameters at the given start, with the priors that the data's scale suggests."""
        (mean, variance), (k, d) = moments, loc.shape
        given = self.priors if isinstance(self.priors, dict) else {}
        default = type(self).default_priors if self.priors else {}
        priors = {**default, **given}
        self.register_buffer("prior_centre", mean)
        self.register_buffer("prior_spread", variance / k ** (2 / d))
        self._declare_mixing(weights, priors)
        constraint = self._rows.parameters["covariance"].constraint
        self.declare("covariance", self._rows.shaped(weights, within), constraint, priors.get("covariance"))
        self.declare("loc", loc, constraints.real, priors.get("loc"))

    def _declare_mixing(self, weights: Tensor, priors: Priors) -> None:
        self.declare("weights", weights, constraints.simplex, priors.get("weights"))

    def _covariance_prior(self) -> Any:
        return covariance_prior(self.covariance_type, self.prior_spread, (self.num_components,))

    def _loc_prior(self) -> Any:
        return loc_prior(self.covariance_type, self.prior_centre, self.covariance, (self.num_components,))

    default_priors: ClassVar[dict[str, Any]] = {
        "weights": Mixture._weights_prior,
        "covariance": _covariance_prior,
        "loc": _loc_prior,
    }
