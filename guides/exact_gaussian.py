r"""The exact posterior of programs whose rows are an affine map of normal latent sites.

.. math::

    h_n \sim \mathrm{Normal}(m, P), \quad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, R)
    \quad\Rightarrow\quad
    q(h_n \mid x_n) = p(h_n \mid x_n), \; \text{normal}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_lvm.handlers.affine_sites import AffineSites
from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.linear_gaussian import Posterior

__all__ = ["ExactGaussian"]


class ExactGaussian:
    r"""The posterior :math:`p(h \mid x)` in closed form, of any program of which it is normal.

    It has no parameters, and is no module: it reads the model's. Which sites are latent, and the affine map from them
    to the rows, are found by running the program, so that factor analysis written by a user is served as well as ours.
    Entries of a row that are masked out, as missing ones are, count nothing; a row whose sites are scaled, as by sample
    weights, counts as often as that says. By `EM` it is the E-step, also of batches (`decay`); under `SVI` the bound is
    the log-likelihood itself, without a gap.

    Args:
        model: A program whose latent sites are normal and stand in the plate of the rows, and whose observed sites
            there are normal with means affine in them.

    Raises:
        ValueError: The program is of another kind; says in what.

    References:
        D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
        M. Tipping, C. Bishop (1999), Probabilistic principal component analysis, JRSS B 61, equations 6 to 8.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> fit = lvm.fit(lvm.models.ProbabilisticPCA(1), x, seed=0, progress=False)
        >>> fit.transform(x).shape
        torch.Size([150, 1])
    """

    def __init__(self, model: Callable | None = None) -> None:
        self.model = model
        self._sites: AffineSites | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {}

    def sites(self, args: tuple, kwargs: dict[str, Any]) -> AffineSites:
        """The program's sites, found once."""
        if self._sites is None:
            if self.model is None:
                raise ValueError("ExactGaussian: expected the model whose posterior it is. Pass ExactGaussian(model).")
            self._sites = AffineSites("ExactGaussian", self.model, args, kwargs)
        return self._sites

    def posterior(self, *args: Any, **kwargs: Any) -> Posterior:
        """The law of the latent vectors, all latent sites of a row joined, and the rows' log-likelihood.

        Args:
            args: The model's arguments.
            kwargs: Its keyword arguments.
        """
        sites = self.sites(args, kwargs)
        x = sites.values(args, kwargs)
        found = sites.law(args, kwargs).posterior(x.double())  # sums over columns of very different sizes
        return Posterior(*(part.to(x) if part.is_floating_point() else part for part in found))

    def row_log_likelihood(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log p(x) of every row, nats, shape (n,): exact, as the posterior is."""
        return self.posterior(*args, **kwargs).log_likelihood

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site of the rows."""
        sites = self.sites(args, kwargs)
        found = self.posterior(*args, **kwargs)
        scale, counts = found.scale_tril[found.pattern], sites.counts(args, kwargs)
        with pyro.plate(sites.plate, len(found.loc)), counted(counts, found.loc):
            if len(sites.latent) == 1 and len(sites.latent[0].shape) == 1:
                (site,) = sites.latent
                return {site.name: pyro.sample(site.name, dist.MultivariateNormal(found.loc, scale_tril=scale))}
            joint = dist.MultivariateNormal(found.loc, scale_tril=scale)
            h = pyro.sample("_joint", joint, infer={"is_auxiliary": True})
            return {
                name: pyro.sample(name, dist.Delta(value, event_dim=value.dim() - 1))
                for name, value in sites.latent_values(h).items()
            }
