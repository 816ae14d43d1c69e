r"""A normal posterior for every row, made from the row by a network.

.. math::

    q(z_n \mid x_n) = \mathrm{Normal}(g_\mu(x_n, c_n), \mathrm{diag}(g_\sigma(x_n, c_n)^2))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn.functional import softplus

from pyro_lvm._pyro import network
from pyro_lvm.handlers.counted import counted
from pyro_lvm.handlers.plate import plate
from pyro_lvm.nn.mlp import MLP, layer_sizes
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["AmortizedGaussian"]

# Least standard deviation: keeps log-densities finite in float32 where the encoder saturates.
MIN_SCALE = 1e-5


class AmortizedGaussian(PyroModule):
    r"""Normal law of the latent vector of every row, independent given the row, by an encoder network.

    The guide's own encoder sees rows on the scale of the model's `centre` and `spread` (probabilities where the model
    is of zeros and ones), and a missing entry as one at its column's centre. A user's program needs the three sizes; it
    must have one site with a vector for every row of the plate "data".

    Of factor models the encoder is affine, as the posterior's mean is. The bound then has no gap where the posterior's
    covariance is diagonal, as it is once the factors are turned so (`canonicalise`), and nothing is missing.

    Args:
        model: The model, initialised; what is not given below is taken from it.
        encoder: A torch module from rows, followed by their covariates, (n, d + q), to means and raw scales, (n, 2k),
            the standard deviation being the softplus of the latter; it is copied.
        hidden: Sizes of the encoder's hidden layers; by default the model's in reverse, or (512, 512).
        latent_dim: k >= 1.
        data_dim: d >= 1.
        covariate_dim: q >= 0.
        site: Name of the latent vector; by default what the model's `latent_site` says, or `z`.

    Raises:
        ValueError: A size is neither given nor known to the model.

    References:
        D. Kingma, M. Welling (2014), Auto-encoding variational Bayes, ICLR, equation 9.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> guide = lvm.guides.AmortizedGaussian(lvm.models.VAE(2, data_dim=5))
        >>> guide(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    # What the encoder makes for every row beside mean and scale.
    features: int = 0

    def __init__(
        self,
        model: Callable | None = None,
        encoder: torch.nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        latent_dim: int | None = None,
        data_dim: int | None = None,
        covariate_dim: int | None = None,
        site: str | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.site = getattr(model, "latent_site", "z") if site is None else site
        self._gaps = bool(getattr(model, "handles_missing", False))
        self.latent_dim = self._size(model, "latent_dim", latent_dim)
        self.data_dim = self._size(model, "data_dim", data_dim)
        given = getattr(model, "covariate_dim", None) if covariate_dim is None else covariate_dim
        self.covariate_dim = whole_number(name, "covariate_dim", given or 0, least=0)
        if hidden is None:
            hidden = tuple(getattr(model, "hidden", (512, 512)))[::-1]
        self.hidden = layer_sizes(name, hidden)
        self._given = encoder is not None
        centre, spread = torch.zeros(self.data_dim), torch.ones(self.data_dim)
        if encoder is None:
            encoder = MLP(self.data_dim + self.covariate_dim, self.hidden, 2 * self.latent_dim + self.features)
            centre, spread = _scale_of(model, centre, spread)
        else:
            encoder = copy.deepcopy(encoder)
            first = next(encoder.parameters(), centre)  # rows come to a given encoder in its own floating-point type
            centre, spread = centre.to(first), spread.to(first)
        self.encoder = encoder
        self.register_buffer("unit", 1 / spread)
        self.register_buffer("offset", -centre / spread)
        self.encoder.to(centre)

    def _size(self, model: Any, name: str, given: int | None) -> int:
        known = getattr(model, name, None) if given is None else given
        if known is None and model is not None and not hasattr(model, name):
            kind = getattr(model, "__name__", type(model).__name__)
            raise ValueError(
                f"{type(self).__name__}: expected a model of one latent vector for each row, as VAE, that tells "
                f"its {name}; got {kind}. Use another guide, as 'local', or pass {name}= if it has such a site."
            )
        if known is None:
            raise ValueError(
                f"{type(self).__name__}: expected {name}, which the model does not tell. Initialise the model, or pass "
                f"{name}=."
            )
        return whole_number(type(self).__name__, name, known)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {
            "encoder": self.encoder if self._given else None,
            "hidden": list(self.hidden),
            "latent_dim": self.latent_dim,
            "data_dim": self.data_dim,
            "covariate_dim": self.covariate_dim,
            "site": self.site,
        }

    def forward(self, x: Tensor | None = None, covariates: Tensor | None = None, **others: Any) -> Tensor:
        """Draw the latent vector of every row.

        Args:
            x: Rows, shape (n, d).
            covariates: Shape (n, q), if the model has them.
            others: Other arguments of the model; only `sample_weights` is used, how often each row counts.

        Returns:
            Shape (n, k).

        Raises:
            ValueError: There are no rows, or the encoder's output has the wrong length.
        """
        if x is None:
            raise ValueError(f"{type(self).__name__}: expected rows x, from which the posterior is made; got none.")
        with plate("data", len(x)), counted(others.get("sample_weights"), self.unit):
            return pyro.sample(self.site, self.posterior(x, covariates))

    def posterior(self, x: Tensor, covariates: Tensor | None = None) -> Any:
        """The law of the latent vector of every row, batch shape (n,), event shape (k,)."""
        loc, scale, _ = self.encode(x, covariates)
        return dist.Normal(loc, scale).to_event(1)

    def encode(self, x: Tensor, covariates: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of every row, (n, k) each, and what else the encoder makes."""
        unit = self.unit
        rows = torch.addcmul(self.offset, x.to(unit), unit)  # (x - centre) / spread, in one pass
        if self._gaps:
            rows = rows.nan_to_num()
        if covariates is not None and self.covariate_dim:
            rows = torch.cat([rows, covariates.to(rows)], -1)
        output, k = network(self, "encoder")(rows), self.latent_dim
        if output.shape[-1] != 2 * k + self.features:
            raise ValueError(
                f"{type(self).__name__}: expected an encoder of {2 * k + self.features} outputs; got "
                f"{output.shape[-1]}. Change its last layer."
            )
        loc, raw, features = output.split([k, k, self.features], -1)
        return loc, MIN_SCALE + softplus(raw), features


def _scale_of(model: Any, centre: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Where the rows of a model lie, if it tells."""
    own, width = getattr(model, "centre", None), getattr(model, "spread", None)
    if not isinstance(own, Tensor) or not isinstance(width, Tensor) or own.shape != centre.shape:
        return centre, spread
    return own.sigmoid() if getattr(model, "likelihood", None) == "bernoulli" else own, width
