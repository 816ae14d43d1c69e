r"""The posterior of a few codes that are zero or normal: a mixture over which of them are not zero.

.. math:: p(u \mid x) = \sum_S p(S \mid x) \, \delta_0(u_{\bar S}) \, \mathrm{Normal}(u_S; A_{SS}^{-1} c_S, A_{SS}^{-1})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.supports import every_support, given_support

__all__ = ["SupportMixture"]


class SupportMixture(TorchDistribution):
    r"""Vectors :math:`h = s u` that are zero but in a support drawn first, and normal there.

    Args:
        log_weights: Log-probabilities of the supports of every row, up to a constant, in the order of
            `ops.supports.every_support`.
        products: c, of every row.
        gram: G = A - I, of every row.
        scale: s, what entries are measured in.
        unit: The length over which densities of entries count, as in `SpikeAndSlab`.
        rows: Which rows the law is of, some perhaps many times; of all if None.
        validate_args: Check values.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        log_weights: Float[Tensor, "n supports"],
        products: Float[Tensor, "n k"],
        gram: Float[Tensor, "n k k"],
        scale: Float[Tensor, " k"],
        unit: Float[Tensor, " k"],
        rows: Int[Tensor, " m"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.log_weights, self.scale, self.unit = log_weights.log_softmax(-1), scale, unit
        self.rows = torch.arange(len(products), device=products.device) if rows is None else rows
        self.products, self.gram = products[self.rows], gram[self.rows]
        super().__init__(self.products.shape[:1], products.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law; it is of its rows, and of no larger batch."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(f"SupportMixture: expected batch {tuple(self.batch_shape)}; got {tuple(batch_shape)}.")
        return self

    @property
    def mean(self) -> Tensor:
        """Mean, shape (n, k)."""
        every = every_support(self.products, self.event_shape[0])
        loc = given_support(self.products.unsqueeze(1), self.gram.unsqueeze(1), every)[0]
        return self.scale * (self.log_weights[self.rows].exp().unsqueeze(-1) * loc).sum(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities, nats, shape (n,)."""
        inside = (value != 0).to(value)
        number = ((value != 0).long() << torch.arange(value.shape[-1], device=value.device)).sum(-1)
        loc, factor = given_support(self.products, self.gram, inside)
        rest = (factor.mT @ ((value / self.scale - loc) * inside).unsqueeze(-1)).squeeze(-1)
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        units = (inside * ((self.unit / self.scale).log() - 0.5 * math.log(2 * math.pi))).sum(-1)
        weight = self.log_weights[self.rows, number]
        return weight + volume + units - 0.5 * rest.square().sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """One draw for every row, shape (n, k).

        Raises:
            ValueError: More draws are asked for; repeat rows instead.
        """
        if torch.Size(sample_shape):
            raise ValueError(f"SupportMixture: expected one draw a row; got {tuple(sample_shape)}. Repeat the rows.")
        with torch.no_grad():
            inside = every_support(self.products, self.event_shape[0])[self._drawn()]
            loc, factor = given_support(self.products, self.gram, inside)
            noise = torch.randn_like(loc).unsqueeze(-1)
            around = torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
            return self.scale * inside * (loc + around)

    def _drawn(self) -> Tensor:
        """The number of a support for every row; those of a row that comes many times are drawn together."""
        counts = self.rows.bincount(minlength=len(self.log_weights))
        order = self.rows.argsort(stable=True)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[self.rows[order]]
        present = counts.nonzero()[:, 0]
        draws = torch.multinomial(self.log_weights[present].exp(), int(counts.max()), replacement=True)
        place = torch.zeros_like(counts).scatter(0, present, torch.arange(len(present), device=order.device))
        number = torch.empty_like(order)
        number[order] = draws[place[self.rows[order]], rank]
        return number
