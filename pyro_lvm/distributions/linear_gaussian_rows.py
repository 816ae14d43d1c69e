r"""The law of rows that are an affine map of a few normal factors, with independent noise, the factors summed out.

.. math:: x \sim \mathrm{Normal}(b + W m,\; W P W^\top + \mathrm{diag}(\psi^2)), \qquad m = 0, \; P = I
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.linear_gaussian import LinearGaussian, Posterior

__all__ = ["LinearGaussianRows"]


class LinearGaussianRows(TorchDistribution):
    r"""Normal rows of which a few factors explain how the columns go together.

    Entries that are NaN are not known, and are marginalised. The cost is that of k x k matrices.

    ================  ================================  ============  ===============
    symbol            meaning                           shape         code
    ================  ================================  ============  ===============
    :math:`b`         mean                              (d,)          `loc`
    :math:`W`         loadings                          (d, k)        `weight`
    :math:`\psi`      standard deviations of the noise  (d,) or ()    `noise_scale`
    ================  ================================  ============  ===============

    Args:
        loc: Mean.
        weight: Loadings.
        noise_scale: Standard deviations of the noise; one number for all columns, or one for each.
        validate_args: Check arguments.

    Raises:
        ValueError: Shapes do not fit.

    Attributes:
        summed_out: What latent variables the law sums out, in a word.
        latent: What they are called among draws from their posterior.

    References:
        D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import LinearGaussianRows
        >>> law = LinearGaussianRows(torch.zeros(2), torch.ones(2, 1), torch.tensor(1.0))
        >>> law.log_prob(torch.tensor([[0.0, 0.0], [0.0, torch.nan]]))
        tensor([-2.3872, -1.2655])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "weight": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True
    summed_out, latent = "normal factors", "h"

    def __init__(
        self,
        loc: Float[Tensor, " d"],
        weight: Float[Tensor, "d k"],
        noise_scale: Float[Tensor, "..."],
        validate_args: bool | None = None,
    ) -> None:
        d = loc.shape[-1] if loc.dim() else 0
        if loc.dim() != 1 or weight.dim() != 2 or len(weight) != d or tuple(noise_scale.shape) not in ((), (d,)):
            got = ", ".join(str(tuple(part.shape)) for part in (loc, weight, noise_scale))
            raise ValueError(
                f"LinearGaussianRows: expected loc of shape (d,), weight (d, k) and noise_scale (d,) or (); got {got}. "
                "Give one line of weight for each column."
            )
        self.loc, self.weight, self.noise_scale = loc, weight, noise_scale
        super().__init__(torch.Size(), loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearGaussianRows:
        """The same law over a batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.loc, new.weight, new.noise_scale = self.loc, self.weight, self.noise_scale
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Mean of the rows."""
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Variances of the columns."""
        return (self.weight.square().sum(-1) + self.noise_scale.square()).expand(self._extended_shape())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Whole rows."""
        shape = self._extended_shape(sample_shape)
        factors = self.loc.new_empty((*shape[:-1], self.weight.shape[-1])).normal_()
        return self.loc + factors @ self.weight.mT + self.noise_scale * self.loc.new_empty(shape).normal_()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of what is known of the rows, nats, the shape of the batch."""
        return self._posterior(value).log_likelihood.reshape(value.shape[:-1]).to(self.loc.dtype)

    def latent_mean(self, value: Tensor) -> Tensor:
        """Means of the factors given rows, batch + (k,)."""
        return self._posterior(value).loc.reshape(*value.shape[:-1], -1).to(self.loc.dtype)

    def posterior_sample(self, value: Tensor, count: int) -> Tensor:
        """Factors drawn given rows, (count,) + batch + (k,)."""
        with torch.no_grad():
            found = self._posterior(value)
            noise = torch.randn(count, *found.loc.shape, dtype=found.loc.dtype, device=found.loc.device)
            draws = found.loc + (found.scale_tril[found.pattern] @ noise.unsqueeze(-1)).squeeze(-1)
        return draws.reshape(count, *value.shape[:-1], -1).to(self.loc.dtype)

    def conditional_mean(self, value: Tensor) -> Tensor:
        """Means of all entries of the rows given those that are known, as if each were measured anew."""
        return self.loc + self.latent_mean(value) @ self.weight.mT

    def _posterior(self, value: Tensor) -> Posterior:
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"LinearGaussianRows: expected values of shape (..., {len(self.loc)}); got {tuple(value.shape)}. "
                "Give one entry for each line of weight."
            )
        loc, weight, noise = (part.double() for part in (self.loc, self.weight, self.noise_scale))
        k = weight.shape[-1]
        law = LinearGaussian(loc, weight, noise.square().expand(len(loc)), weight.new_zeros(k), weight.new_ones(k))
        return law.posterior(value.reshape(-1, len(loc)).double())
