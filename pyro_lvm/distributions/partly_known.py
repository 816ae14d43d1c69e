r"""A guide's law of which some values are known: it draws those, and nothing is left to be said of how.

.. math:: q(z_n) = \delta(z_n = v_n) \text{ where } v_n \text{ is known, the guide's own law elsewhere}
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

__all__ = ["LOG_ZERO", "PartlyKnown"]

# A log-probability of zero that stays finite: sums of it absorb every log-density, their exponential is exactly 0, and
# unlike -inf it has no way to become NaN where all terms of a log-sum-exp are impossible.
LOG_ZERO = -1e30


class PartlyKnown(dist.MaskedDistribution):
    r"""A law with known values: draws show them, and their log-density is 0.

    Minus that, in a bound, is the entropy of a point: none. Its divergence from a prior is
    :math:`-\log p(v_n)` at known entries. Where states can be listed, all but the known one have the log-probability
    `LOG_ZERO`, so that sums over states are right too.

    Args:
        base_dist: The law of what is not known.
        given: Values, which broadcast to its batch and event; anything where they are not known.
        known: Which entries are known, broadcasts to the batch.
    """

    def __init__(self, base_dist: Any, given: Tensor, known: Tensor) -> None:
        super().__init__(base_dist, ~known)
        self.given = given
        self._shown: tuple[Tensor, Tensor] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same law for more rows."""
        return PartlyKnown(self.base_dist.expand(batch_shape), self.given, self.known)

    @property
    def known(self) -> Tensor:
        """Which entries are known, shape of the batch."""
        return ~torch.as_tensor(self._mask)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own default
        """A draw, known values in their places."""
        return self._show(self.base_dist.sample(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - torch's own default
        """A draw with gradients, known values in their places."""
        return self._show(self.base_dist.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, 0 at known entries."""
        density = self.base_dist.log_prob(self.behind(value))
        zero = torch.zeros_like(density)
        if not self.has_enumerate_support:
            return torch.where(self.known, zero, density)
        other = value != self.given.to(value)
        other = other.flatten(-self.event_dim).any(-1) if self.event_dim else other
        return torch.where(self.known, torch.where(other, zero + LOG_ZERO, zero), density)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """What Pyro's gradient estimators take."""
        if self.has_enumerate_support:
            return TorchDistributionMixin.score_parts(self, value)
        # no `scale_and_mask` of all parts: that leaves the score, which known rows would be given with their costs
        parts = self.base_dist.score_parts(self.behind(value))
        return ScoreParts(*(scale_and_mask(part, mask=self._mask) for part in parts))

    def behind(self, value: Tensor) -> Tensor:
        """What was drawn in place of known values, if `value` is the latest draw: laws remember how they made it."""
        return self._shown[1] if self._shown is not None and self._shown[0] is value else value

    @property
    def mean(self) -> Tensor:
        """Means, known values in their places."""
        return self.placed(self.base_dist.mean)

    @property
    def mode(self) -> Tensor:
        """Modes, known values in their places."""
        return self.placed(self.base_dist.mode)

    def placed(self, values: Tensor) -> Tensor:
        """Values of the law's shape, known ones in their places."""
        known = self.known.reshape(self.known.shape + (1,) * self.event_dim)
        return torch.where(known, self.given.to(values), values)

    def divergence(self, prior: Any, elsewhere: Tensor, value: Tensor) -> Tensor:
        """The divergence from a prior, nats by batch.

        Args:
            prior: A law of the same shape.
            elsewhere: The divergence of what is not known.
            value: A draw.
        """
        return torch.where(self.known, -prior.log_prob(value), elsewhere)

    def _show(self, draw: Tensor) -> Tensor:
        shown = self.placed(draw)
        self._shown = (shown, draw)
        return shown


def _divergence(q: PartlyKnown, p: Any) -> Tensor:
    elsewhere = kl_divergence(q.base_dist, p)
    return q.divergence(p, elsewhere, q.sample() if q._shown is None else q._shown[0])


register_kl(PartlyKnown, Distribution)(_divergence)
register_kl(PartlyKnown, dist.MaskedDistribution)(_divergence)
