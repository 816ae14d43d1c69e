r"""Vectors that are an invertible affine map of independent numbers.

.. math:: x = b + W h, \qquad \log p(x) = \sum_i \log p_i\big((W^{-1}(x - b))_i\big) - \log|\det W|
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["IndependentComponents"]


class IndependentComponents(TorchDistribution):
    r"""The law of :math:`b + W h`, W square and h of independent coordinates.

    Args:
        source: The law of a coordinate of h, batch shape (), or of each of them, (d,).
        weight: W, shape (d, d), not singular.
        loc: b, shape (d,).
        validate_args: Check arguments and values.

    Raises:
        ValueError: Shapes do not fit.

    Attributes:
        summed_out: What stands behind the rows, in words.
        latent: What the coordinates are called among latent variables.

    References:
        D. MacKay (1996), Maximum likelihood and covariant algorithms for independent component analysis, equation 2.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_lvm.distributions import IndependentComponents
        >>> law = IndependentComponents(dist.Laplace(0.0, 1.0), 2 * torch.eye(1), torch.zeros(1))
        >>> law.log_prob(torch.zeros(1)).exp()
        tensor(0.2500)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "weight": constraints.independent(constraints.real, 2),
        "loc": constraints.real_vector,
    }
    support = constraints.real_vector
    summed_out, latent = "sources, which rows determine", "h"

    def __init__(
        self,
        source: Any,
        weight: Float[Tensor, "d d"],
        loc: Float[Tensor, " d"],
        validate_args: bool | None = None,
    ) -> None:
        d = loc.shape[-1] if loc.dim() == 1 else -1
        if tuple(weight.shape) != (d, d):
            raise ValueError(
                f"IndependentComponents: expected weight of shape (d, d) and loc of shape (d,); got "
                f"{tuple(weight.shape)} and {tuple(loc.shape)}. A law of other than d sources needs noise."
            )
        if tuple(source.batch_shape) not in ((), (d,)) or source.event_shape:
            raise ValueError(
                f"IndependentComponents: expected the law of one source, or of each of {d}; got shape "
                f"{tuple(source.shape())}. Pass one univariate law."
            )
        self.source, self.weight, self.loc = source, weight, loc
        super().__init__(torch.Size(), torch.Size([d]), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients: those of the sources' law."""
        return self.source.has_rsample

    @property
    def mean(self) -> Tensor:
        """Mean, batch + (d,)."""
        mean = self.loc + self.weight @ self.source.mean.expand(self.event_shape)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances, batch + (d,)."""
        variance = self.weight.square() @ self.source.variance.expand(self.event_shape)
        return variance.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law in a larger batch; parameters stay as they are."""
        other = self._get_checked_instance(IndependentComponents, _instance)
        other.source, other.weight, other.loc = self.source, self.weight, self.loc
        super(IndependentComponents, other).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        other._validate_args = self._validate_args
        return other

    def latent_mean(self, value: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The sources h of rows."""
        rows = (value - self.loc).reshape(-1, self.event_shape[0])
        return torch.linalg.solve(self.weight.mT, rows, left=False).reshape(value.shape)

    def posterior_sample(self, value: Tensor, count: int) -> Tensor:
        """The sources of rows, which are certain, (count,) + batch + (d,)."""
        return self.latent_mean(value).expand(count, *value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        density = self.source.log_prob(self.latent_mean(value)).sum(-1)
        return density - torch.linalg.slogdet(self.weight)[1]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape sample + batch + (d,)."""
        return self._mapped(self.source.rsample, sample_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients, shape sample + batch + (d,)."""
        with torch.no_grad():
            return self._mapped(self.source.sample, sample_shape)

    def _mapped(self, draw: Any, sample_shape: Sequence[int]) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        own = self.event_shape[len(self.source.batch_shape) :]
        return self.loc + draw(shape + own) @ self.weight.mT
