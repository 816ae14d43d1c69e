r"""A normal posterior for every row that a network begins and a search ends.

.. math::

    \lambda_n^0 = g(x_n), \qquad \lambda_n^{t+1} = \lambda_n^t + \rho\, F^{-1} \hat\nabla \mathcal{L}_n(\lambda_n^t),
    \qquad q(z_n \mid x_n) = \mathrm{Normal}(\lambda_n^K)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.guides.amortized_gaussian import AmortizedGaussian
from pyro_lvm.guides.row_search import climb
from pyro_lvm.guides.row_sites import RowSites, Settled
from pyro_lvm.handlers.rows import rows_at_hand
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["SemiAmortized"]


class SemiAmortized(AmortizedGaussian):
    r"""Mean and standard deviation of every row by an encoder network, improved by steps on the row's own bound.

    The search is that of `row_search`. The gradient of the bound at its end goes to the encoder as if the search had
    added a constant: :math:`\lambda^K = \lambda^0 + (\lambda^K - \lambda^0)` with the difference cut. Ignored are the
    Jacobian :math:`\partial\lambda^K / \partial\lambda^0`, which Kim et al. carry through the steps, and how the end
    depends on the model's parameters; both need second derivatives of the model. Where the search ends at the best law
    of the family that gradient is 0: the encoder learns from what the search leaves to be done, so let it leave some.

    Args:
        model: The model, initialised; rows `x` are its first argument, and its only continuous latent site is `site`.
        encoder: As in `AmortizedGaussian`, as are the next four.
        hidden: Sizes of the encoder's hidden layers.
        num_steps: K >= 1.
        num_final_steps: Steps where a posterior of given rows is asked for, as evidence and `fit.transform` do, >= 1.
        step_size: :math:`\rho` in (0, 1].
        latent_dim: k >= 1.
        data_dim: d >= 1.
        covariate_dim: q >= 0.
        site: As in `AmortizedGaussian`.

    Raises:
        ValueError: An argument is out of range, or a size is neither given nor known to the model.

    References:
        Y. Kim, S. Wiseman, A. Miller, D. Sontag, A. Rush (2018), Semi-amortized variational autoencoders, ICML,
            algorithm 1.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> model = lvm.models.VAE(2, hidden=[16])
        >>> fit = lvm.fit(model, x, guide="semi-amortized", batch_size=100, max_epochs=2, seed=0, progress=False)
        >>> fit.transform(x[:5]).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        model: Callable,
        encoder: torch.nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        num_steps: int = 5,
        num_final_steps: int = 50,
        step_size: float = 0.4,
        latent_dim: int | None = None,
        data_dim: int | None = None,
        covariate_dim: int | None = None,
        site: str | None = None,
    ) -> None:
        super().__init__(model, encoder, hidden, latent_dim, data_dim, covariate_dim, site)
        self.__dict__["_model"] = model  # no part of this module: its parameters are not the guide's
        self.num_steps = whole_number("SemiAmortized", "num_steps", num_steps)
        self.num_final_steps = whole_number("SemiAmortized", "num_final_steps", num_final_steps)
        self.step_size = real_number("SemiAmortized", "step_size", step_size, "in (0, 1]")

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        own = {name: getattr(self, name) for name in ("num_steps", "num_final_steps", "step_size")}
        return {**super().config, **own}

    def __call__(self, x: Tensor | None = None, covariates: Tensor | None = None, **others: Any) -> Tensor:
        """Draw the latent vector of every row.

        Args:
            x: Rows, shape (n, d).
            covariates: Shape (n, q), if the model has them.
            others: Other arguments of the model.

        Returns:
            Shape (n, k).

        Raises:
            ValueError: There are no rows, or the encoder's output has the wrong length.
        """
        sites, place = self._found(x, covariates, others, final=False)
        return sites.draw(place)[self.site]

    def forward(self, x: Tensor | None = None, covariates: Tensor | None = None, **others: Any) -> Tensor:
        """Where the search starts: means and log standard deviations of every row, shape (n, 2k)."""
        if x is None:
            raise ValueError("SemiAmortized: expected rows x, from which the posterior is made; got none.")
        loc, scale, _ = self.encode(x, covariates)
        return torch.cat([loc, scale.log()], -1)

    def settle(self, x: Tensor | None = None, covariates: Tensor | None = None, **others: Any) -> Settled:
        """A guide for these rows alone, which a longer search has found once.

        Args:
            x: Rows, shape (n, d).
            covariates: Shape (n, q), if the model has them.
            others: Other arguments of the model.
        """
        with torch.no_grad(), poutine.block(hide_types=["sample", "param"]):
            return Settled(None, *self._found(x, covariates, others, final=True))

    def _found(
        self, x: Tensor | None, covariates: Tensor | None, others: dict[str, Any], final: bool
    ) -> tuple[RowSites, Tensor]:
        """The sites of these rows, and their means and log standard deviations, (n, 2k)."""
        # the module's own call ends before the search, inside of which a model's `pyro.param` would be this module's
        start = super().__call__(x, covariates)
        given = others if covariates is None else {"covariates": covariates, **others}
        sites = RowSites("SemiAmortized", self._model, (x,), given)
        if [site.name for site in sites.sites] != [self.site] or sites.width != self.latent_dim or sites.shared:
            raise ValueError(
                f"SemiAmortized: expected a model with one continuous latent site '{self.site}', a vector of "
                f"{self.latent_dim}; got {', '.join([s.name for s in sites.sites] + sites.shared)}. Use LocalGaussian."
            )
        hand = rows_at_hand()
        if hand is not None and not hand.search:
            return sites, start
        steps = self.num_final_steps if final else self.num_steps
        end = climb(sites.log_joint, start, steps, self.step_size, weight=sites.weight, landing=final)
        return sites, start + (end - start).detach()
