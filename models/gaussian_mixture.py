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

from pyro_lvm.distributions import InverseWishart
from pyro_lvm.models.mixture import Mixture, Priors

__all__ = ["GaussianMixture"]

COVARIANCES = ("full", "diag", "tied", "spherical")


class GaussianMixture(Mixture):
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

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.GaussianMixture(2), x, seed=0, progress=False)
        >>> round(fit.score(x) * len(x), 3)
        -1130.264
    """

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
        super().__init__(num_components, priors)
        if covariance not in COVARIANCES:
            raise ValueError(
                f"GaussianMixture: expected covariance to be one of {', '.join(COVARIANCES)}; got {covariance!r}."
            )
        unknown = set(priors) - set(self.dims) if isinstance(priors, dict) else set()
        if unknown:
            raise ValueError(
                f"GaussianMixture: expected priors for {', '.join(self.dims)}; got {', '.join(sorted(unknown))}."
            )
        self.data_dim = self._checked_columns(data_dim)
        self.covariance_type = covariance
        if data_dim is not None:
            self._declare(torch.zeros(1, data_dim), torch.eye(data_dim).expand(self.num_components, -1, -1))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "num_components": self.num_components,
            "data_dim": self.data_dim,
            "covariance": self.covariance_type,
            "priors": self.priors,
        }

    @property
    def _num_columns(self) -> int | None:
        return self.data_dim

    def _parameters_of_components(self) -> dict[str, Tensor]:
        return {"covariance": self.covariance, "loc": self.loc}

    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        return pyro.sample("x", self._component(parameters["loc"][z], parameters["covariance"], z), obs=x)

    def _component(self, loc: Tensor, covariance: Tensor, z: Tensor) -> Any:
        if self.covariance_type == "full":
            return dist.MultivariateNormal(loc, covariance_matrix=covariance[z])
        if self.covariance_type == "tied":
            return dist.MultivariateNormal(loc, covariance_matrix=covariance)
        variance = covariance[z]
        if self.covariance_type == "spherical":
            variance = variance.unsqueeze(-1)
        return dist.Normal(loc, variance.sqrt()).to_event(1)

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer rows than components, fewer than two rows, or a constant column."""
        super().check_training(x)
        n = len(x)
        if n < 2:
            raise ValueError(
                "GaussianMixture: expected at least 2 rows, since one row has no covariance; got 1. Add rows."
            )
        constant = (x == x[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"GaussianMixture: expected columns that vary; got constant column {constant[0]} "
                f"(always {x[0, constant[0]].item():g}), whose likelihood is unbounded. Drop it."
            )

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from k-means clusters of the standardised columns; other seeds give other starts.

        Args:
            x: Rows, shape (n, d).
            sample_weights: How often each row counts, shape (n,).

        Raises:
            ValueError: Fewer rows than components, fewer than two rows, a constant column, or bad weights.
        """
        self.check_training(x)
        self._check_weights(x, sample_weights)
        n, d = x.shape
        self.data_dim = d
        members = self._clusters(x, sample_weights)
        count = members.sum(0)
        loc = (members.T @ x) / count.clamp_min(1).unsqueeze(-1)
        overall = torch.cov(x.T, correction=0).reshape(d, d)
        centred = x - loc[members.argmax(-1)]
        within = torch.einsum("nk,ni,nj->kij", members, centred, centred)
        # a cluster of few rows has no covariance of its own: add d rows' worth of a shrunken overall one
        share = overall.diagonal().diag_embed() / self.num_components ** (2 / d)
        within = (within + d * share) / (count + d)[:, None, None]
        self._declare(x, within, loc, (count + 1) / (n + self.num_components))

    def _declare(self, x: Tensor, within: Tensor, loc: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Create the three parameters at the given start, with the priors that the data's scale suggests."""
        k, d = len(within), x.shape[1]
        weights = torch.full((k,), 1 / k).to(within) if weights is None else weights
        loc = torch.zeros(k, d).to(within) if loc is None else loc
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
        variance = x.var(0, correction=0) if len(x) > 1 else torch.ones(d).to(within)
        self.register_buffer("prior_centre", x.mean(0))
        self.register_buffer("prior_spread", variance / k ** (2 / d))
        self.declare("weights", weights, constraints.simplex, priors.get("weights"))
        positive = constraints.positive_definite if matrix else constraints.positive
        self.declare("covariance", start, positive, priors.get("covariance"))
        self.declare("loc", loc, constraints.real, priors.get("loc"))

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
