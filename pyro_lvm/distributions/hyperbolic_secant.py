r"""The hyperbolic secant law: smooth at zero, with exponential tails, of variance one.

.. math:: p(x) = \tfrac12 \operatorname{sech}(\tfrac{\pi}{2} x)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

__all__ = ["HyperbolicSecant"]


class HyperbolicSecant(TorchDistribution):
    r"""Hyperbolic secant law with mean `loc` and standard deviation `scale`.

    .. math:: p(x) = \frac{1}{2 \sigma} \operatorname{sech}\Big(\frac{\pi}{2} \frac{x - \mu}{\sigma}\Big)

    Args:
        loc: Mean, any shape.
        scale: Standard deviation > 0.
        validate_args: Check arguments and values.

    References:
        N. Johnson, S. Kotz, N. Balakrishnan (1995), Continuous Univariate Distributions 2, chapter 23.11.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import HyperbolicSecant
        >>> HyperbolicSecant(0.0, 1.0).log_prob(torch.tensor(0.0)).exp()
        tensor(0.5000)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, the shape of the batch."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance, the shape of the batch."""
        return self.scale.square()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law in a larger batch."""
        other = self._get_checked_instance(HyperbolicSecant, _instance)
        shape = torch.Size(batch_shape)
        other.loc, other.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(HyperbolicSecant, other).__init__(shape, validate_args=False)
        other._validate_args = self._validate_args
        return other

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        size = (0.5 * math.pi * (value - self.loc) / self.scale).abs()
        return -size - torch.log1p((-2 * size).exp()) - self.scale.log()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws by the inverse of the distribution function, shape sample + batch."""
        shape = self._extended_shape(torch.Size(sample_shape))
        limits = torch.finfo(self.loc.dtype)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.icdf(uniform.clamp(limits.tiny, 1 - limits.eps))

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, the shape of the batch."""
        z = 0.5 * math.pi * (value - self.loc) / self.scale
        return 2 / math.pi * z.exp().atan()

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles of probabilities, the shape of the batch."""
        return self.loc + self.scale * (2 / math.pi) * (0.5 * math.pi * value).tan().log()

    def entropy(self) -> Tensor:
        """Entropy, nats, the shape of the batch."""
        return (4 * self.scale).log()
