r"""The posterior of a few codes that are zero or normal: a mixture over which of them are not zero.

.. math:: p(u \mid x) = \sum_S p(S \mid x) \, \delta_0(u_{\bar S}) \, \mathrm{Normal}(u_S; A_{SS}^{-1} c_S, A_{SS}^{-1})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
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
        validate_args: bool | None = None,
    ) -> None:
        self.log_weights, self.products, self.gram = log_weights.log_softmax(-1), products, gram
        self.scale, self.unit = scale, unit
        super().__init__(products.shape[:1], products.shape[1:], validate_args=validate_args)

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
        return self.scale * (self.log_weights.exp().unsqueeze(-1) * loc).sum(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities, nats, shape (n,)."""
        inside = (value != 0).to(value)
        number = ((value != 0).long() << torch.arange(value.shape[-1], device=value.device)).sum(-1)
        loc, factor = given_support(self.products, self.gram, inside)
        rest = (factor.mT @ ((value / self.scale - loc) * inside).unsqueeze(-1)).squeeze(-1)
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        units = (inside * ((self.unit / self.scale).log() - 0.5 * math.log(2 * math.pi))).sum(-1)
        weight = self.log_weights.gather(-1, number.unsqueeze(-1)).squeeze(-1)
        return weight + volume + units - 0.5 * rest.square().sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """One draw for every row, shape (n, k).

        Raises:
            ValueError: More draws are asked for; repeat rows instead.
        """
        if torch.Size(sample_shape):
            raise ValueError(f"SupportMixture: expected one draw a row; got {tuple(sample_shape)}. Repeat the rows.")
        with torch.no_grad():
            number = torch.multinomial(self.log_weights.exp(), 1)
            inside = every_support(self.products, self.event_shape[0])[number[:, 0]]
            loc, factor = given_support(self.products, self.gram, inside)
            noise = torch.randn_like(loc).unsqueeze(-1)
            around = torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
            return self.scale * inside * (loc + around)
