r"""Mean-field posterior of conjugate programs: every site keeps the family of its prior.

.. math:: q(\theta) = \prod_s q_s(\theta_s \mid \theta_{\mathrm{parent}(s)})

A location whose prior shares the scale of the rows (normal-inverse-Wishart and its kin) is given its scale:
:math:`q(\mu \mid \Sigma) = \mathrm{Normal}(m, \Sigma / \kappa)`. Trained by `lvm.infer.CoordinateAscent`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_lvm.distributions import InverseWishart

__all__ = ["Conjugate"]

FAMILIES: dict[str, type] = {
    "Beta": dist.Beta,
    "Dirichlet": dist.Dirichlet,
    "Gamma": dist.Gamma,
    "InverseGamma": dist.InverseGamma,
    "InverseWishart": InverseWishart,
    "MultivariateNormal": dist.MultivariateNormal,
    "Normal": dist.Normal,
}


class Conjugate(PyroModule):
    """A posterior of the prior's family for every continuous site.

    Its numbers are buffers: coordinate ascent computes them, no gradient moves them.

    Args:
        model: The program whose posterior it is.
        sites: What `configure` takes; found by the inference if None.

    References:
        D. Blei, A. Kucukelbir, J. McAuliffe (2017), Variational inference: a review for statisticians, JASA, section 4.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> model = lvm.models.GaussianMixture(2, priors=True)
        >>> fit = lvm.fit(model, x, guide="conjugate", inference="coordinate-ascent", seed=0, progress=False)
        >>> type(fit.guide).__name__
        'Conjugate'
    """

    trained_by: ClassVar[str] = "coordinate-ascent"

    def __init__(self, model: Callable | None = None, sites: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.sites: dict[str, Any] = {}
        if sites:
            self.configure(sites)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {"sites": self.sites}

    def configure(self, sites: dict[str, Any]) -> None:
        """Say what the sites are, parents before their children.

        Args:
            sites: By name: `family`, `event_dim` (of the site's value), `dtype`, `parent` (a site or None) and `shapes`
                of the distribution's arguments; with a parent, `loc`, `count` and `index` into the parent's value.
        """
        self.sites = sites
        for name, site in sites.items():
            for argument, shape in site["shapes"].items():
                dtype = torch.long if argument == "index" else getattr(torch, site["dtype"])
                self.register_buffer(f"{name}__{argument}", torch.zeros(shape, dtype=dtype))

    def update(self, name: str, **arguments: Tensor) -> None:
        """Set the arguments of a site's posterior."""
        for argument, value in arguments.items():
            buffer = getattr(self, f"{name}__{argument}")
            buffer.copy_(value.reshape(buffer.shape))

    def posterior(self, name: str, values: dict[str, Tensor]) -> Any:
        """The posterior of a site, entries not yet joined to events.

        Args:
            name: The site.
            values: Values of the sites before it.
        """
        site = self.sites[name]
        arguments = {argument: getattr(self, f"{name}__{argument}") for argument in site["shapes"]}
        if site["parent"] is None:
            return FAMILIES[site["family"]](**arguments)
        spread = values[site["parent"]].reshape(-1)[arguments["index"]]
        count = arguments["count"]
        if site["family"] == "Normal":
            return dist.Normal(arguments["loc"], (spread / count).sqrt())
        return dist.MultivariateNormal(arguments["loc"], covariance_matrix=spread / count[..., None, None])

    def means(self) -> dict[str, Tensor]:
        """The exact posterior mean of every site; not finite where there is none."""
        found: dict[str, Tensor] = {}
        for name in self.sites:  # a location's mean is the same whatever the scale it is given
            found[name] = self.posterior(name, found).mean.detach().clone()
        return found

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every site."""
        if not self.sites:
            raise ValueError(
                "Conjugate: expected a guide that was trained; call lvm.infer.CoordinateAscent.step first."
            )
        values: dict[str, Tensor] = {}
        for name, site in self.sites.items():
            q = self.posterior(name, values)
            values[name] = pyro.sample(name, q.to_event(site["event_dim"] - q.event_dim))
        return values
