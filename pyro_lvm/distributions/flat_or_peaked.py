r"""A source of variance one that is either flatter than the normal law or more peaked.

.. math::

    p(x) = \tfrac12 \mathrm{Normal}(x; -\tfrac{1}{\sqrt 2}, \tfrac12) + \tfrac12 \mathrm{Normal}(x; \tfrac{1}{\sqrt 2},
    \tfrac12) \qquad\text{or}\qquad p(x) = \tfrac12 \operatorname{sech}(\tfrac{\pi}{2} x)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.hyperbolic_secant import HyperbolicSecant

__all__ = ["FlatOrPeaked"]


class FlatOrPeaked(TorchDistribution):
    r"""Two normal laws side by side where a source is flat, the hyperbolic secant where it is not.

    Args:
        flat: Which of the sources are flat, any shape: true or false.
        like: A tensor of the type and on the device of draws.
        validate_args: Check arguments and values.

    References:
        M. Girolami (1998), An alternative perspective on adaptive independent component analysis algorithms, Neural
            Computation 10: the symmetric Pearson mixture, here of variance one.
        T.-W. Lee, M. Girolami, T. Sejnowski (1999), Independent component analysis using an extended infomax algorithm
            for mixed subgaussian and supergaussian sources, Neural Computation 11.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real
    has_rsample = False

    def __init__(self, flat: Tensor, like: Tensor, validate_args: bool | None = None) -> None:
        self.flat = flat.bool()
        self.peaked = HyperbolicSecant(like.new_zeros(()), like.new_ones(()), validate_args=False)
        super().__init__(self.flat.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, the shape of the batch."""
        return self.peaked.loc.expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance, the shape of the batch."""
        return self.peaked.scale.expand(self.batch_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law in a larger batch."""
        other = self._get_checked_instance(FlatOrPeaked, _instance)
        other.flat, other.peaked = self.flat.expand(torch.Size(batch_shape)), self.peaked
        super(FlatOrPeaked, other).__init__(torch.Size(batch_shape), validate_args=False)
        other._validate_args = self._validate_args
        return other

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        size = (math.sqrt(2) * value).abs()
        humps = size - value.square() + torch.log1p((-2 * size).exp()) - 0.5 - 0.5 * math.log(4 * math.pi)
        return torch.where(self.flat, humps, self.peaked.log_prob(value))

    def score(self, value: Tensor) -> Tensor:
        """Minus the derivative of the log-density."""
        humps = 2 * value - math.sqrt(2) * (math.sqrt(2) * value).tanh()
        return torch.where(self.flat, humps, 0.5 * math.pi * (0.5 * math.pi * value).tanh())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape sample + batch."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            peaked = self.peaked.sample(shape)
            sign = torch.randint(0, 2, shape, device=peaked.device).to(peaked) * 2 - 1
            return torch.where(self.flat, math.sqrt(0.5) * (sign + torch.randn_like(peaked)), peaked)
