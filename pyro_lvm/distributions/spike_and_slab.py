r"""The spike-and-slab law: zero with some probability, else normal.

.. math:: h \sim (1 - \pi)\, \delta_0 + \pi\, \mathrm{Normal}(\mu, \sigma^2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.utils import broadcast_all

from pyro_lvm.ops.plain_error import PlainError

__all__ = ["SpikeAndSlab"]


class _RealOrZero(constraints.Constraint):
    """Real numbers, of which zero has a probability of its own."""

    def check(self, value: Tensor) -> Tensor:
        """Whether they are numbers."""
        return value.isfinite()


_real_or_zero = _RealOrZero()


def _no_map(constraint: _RealOrZero) -> Any:
    raise PlainError(
        "SpikeAndSlab: expected a guide that knows that zero has a probability of its own; got one, or a sampler, of "
        "densities over the real numbers, which never meets it. Use guide 'sparse-codes'."
    )


biject_to.register(_RealOrZero, _no_map)


class SpikeAndSlab(TorchDistribution):
    r"""Zero with probability :math:`1 - \pi`, else normal.

    Log-densities are those of a law with a point: at zero :math:`\log(1 - \pi)`, elsewhere
    :math:`\log \pi + \log \mathrm{Normal}(h; \mu, \sigma^2) + \log \text{unit}`. A density has the unit of one over
    that of h, a probability has none: `unit` is the length over which densities count. Where laws of one
    site meet, as a prior and a guide, it must be the same; it cancels from all likelihoods, but tells which value is
    most probable.

    Args:
        inclusion_probability: :math:`\pi`, strictly between 0 and 1.
        loc: :math:`\mu`.
        scale: :math:`\sigma` > 0.
        unit: > 0.
        validate_args: Check arguments and values.

    References:
        T. Mitchell, J. Beauchamp (1988), Bayesian variable selection in linear regression, JASA 83.
        M. Titsias, M. Lazaro-Gredilla (2011), Spike and slab variational inference for multi-task and multiple kernel
            learning, NeurIPS.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import SpikeAndSlab
        >>> law = SpikeAndSlab(0.25, 0.0, 1.0)
        >>> law.log_prob(torch.tensor(0.0)).exp(), law.variance
        (tensor(0.7500), tensor(0.2500))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "inclusion_probability": constraints.unit_interval,
        "loc": constraints.real,
        "scale": constraints.positive,
        "unit": constraints.positive,
    }
    support = _real_or_zero

    def __init__(
        self,
        inclusion_probability: Tensor | float,
        loc: Tensor | float,
        scale: Tensor | float,
        unit: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.inclusion_probability, self.loc, self.scale, self.unit = broadcast_all(
            inclusion_probability, loc, scale, unit
        )
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean, the shape of the batch."""
        return self.inclusion_probability * self.loc

    @property
    def variance(self) -> Tensor:
        """Variance, the shape of the batch."""
        square = self.inclusion_probability * (self.scale.square() + self.loc.square())
        return square - self.mean.square()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law in a larger batch."""
        other = self._get_checked_instance(SpikeAndSlab, _instance)
        shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(other, name, getattr(self, name).expand(shape))
        super(SpikeAndSlab, other).__init__(shape, validate_args=False)
        other._validate_args = self._validate_args
        return other

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        rest = (value - self.loc) / self.scale
        slab = (self.unit / self.scale).log() - 0.5 * (rest.square() + math.log(2 * math.pi))
        return torch.where(
            value == 0, torch.log1p(-self.inclusion_probability), self.inclusion_probability.log() + slab
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape sample + batch."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            slab = torch.normal(self.loc.expand(shape), self.scale.expand(shape))
            return torch.where(torch.bernoulli(self.inclusion_probability.expand(shape)) > 0, slab, 0.0)
