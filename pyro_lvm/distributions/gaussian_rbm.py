r"""Restricted Boltzmann machines over real vectors, their hidden units summed out.

.. math::

    -E(v, h) = -\sum_i \frac{(v_i - b_i)^2}{2 \sigma_i^2}
        + (h - \lambda)^\top c + \Big(\frac{v - \mu}{\sigma^2}\Big)^\top W (h - \lambda)

Given hidden units, :math:`v \sim \mathrm{Normal}(b + W (h - \lambda), \sigma^2)`: a mixture of :math:`2^m` normals with
one diagonal covariance.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.energy import EnergyDistribution
from pyro_lvm.distributions.rbm import RBM

__all__ = ["GaussianRBM"]


class GaussianRBM(RBM):
    r"""Restricted Boltzmann machine with normal visible and Bernoulli hidden units.

    Symbols are those of `RBM`, with :math:`\sigma`, the visible units' standard deviation given the hidden ones, in
    `noise_scale`, shape (d,). Columns of the weight are shifts of the mean, in the units of the data. The visible bias
    is the mean at :math:`h = \lambda`.

    Args:
        weight: Interactions, shape (d, m).
        visible_bias: Means at the hidden offset, batch + (d,).
        hidden_bias: Hidden biases, batch + (m,).
        noise_scale: Standard deviations > 0, shape (d,).
        **options: As for `RBM`; `base_visible_bias` is a mean here.

    Raises:
        ValueError: Shapes do not fit.

    References:
        K. Cho, A. Ilin, T. Raiko (2011), Improved learning of Gaussian-Bernoulli restricted Boltzmann machines, eq. 4.
        J. Melchior, N. Wang, L. Wiskott (2017), Gaussian-binary restricted Boltzmann machines for modeling natural
        image statistics, equations 14 to 17.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import GaussianRBM
        >>> law = GaussianRBM(torch.zeros(1, 2), torch.zeros(1), torch.zeros(2), torch.ones(1))
        >>> law.log_prob(torch.zeros(1))
        tensor(-0.9189)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        **RBM.arg_constraints,
        "noise_scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector

    def __init__(
        self,
        weight: Float[Tensor, "d m"],
        visible_bias: Float[Tensor, "*batch d"],
        hidden_bias: Float[Tensor, "*batch m"],
        noise_scale: Float[Tensor, " d"],
        **options: Any,
    ) -> None:
        self.noise_scale = noise_scale
        super().__init__(weight, visible_bias, hidden_bias, **options)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """Means of the visible units given hidden ones, batch + (d,)."""
        return self.visible_field(hidden)

    def for_annealing(self) -> GaussianRBM:
        """The machine itself: its sides are of different kinds."""
        return self

    def annealed(self, inverse_temperature: float) -> GaussianRBM:
        """The machine with weights and hidden biases scaled down, and the mean on its way from the base."""
        beta = inverse_temperature
        return GaussianRBM(
            beta * self.weight,
            self._path_bias(beta),
            beta * self.hidden_bias,
            self.noise_scale,
            visible_offset=self.visible_offset,
            hidden_offset=self.hidden_offset,
            base_visible_bias=self.base_visible_bias,
            sample_steps=self.sample_steps,
            validate_args=False,
        )

    contrast = EnergyDistribution.contrast  # the variances have gradients too

    def _enumerable_sizes(self) -> tuple[int, ...]:
        return (self.weight.shape[-1],)

    def _sufficient(self, value: Tensor) -> Tensor:
        return (value - self.visible_offset) / self.noise_scale.square()

    def _visible_energy(self, value: Tensor, bias: Tensor) -> Tensor:
        return 0.5 * ((value - bias) / self.noise_scale).square().sum(-1)

    def _visible_log_sum(self, field: Tensor) -> Tensor:
        r"""Integral over visible units: :math:`W (h - \lambda)` is the field less the bias."""
        shift, precision = field - self._bias_like(field), self.noise_scale.square().reciprocal()
        energy = (precision * shift * (0.5 * shift + self._bias_like(field) - self.visible_offset)).sum(-1)
        return energy + (self.noise_scale.log() + 0.5 * math.log(2 * math.pi)).sum()

    def _bias_like(self, field: Tensor) -> Tensor:
        return self.visible_bias.unsqueeze(-2) if field.dim() > self.visible_bias.dim() else self.visible_bias

    def base_log_normalizer(self) -> Tensor:
        """The log-normalizer of independent units, nats."""
        half = torch.full_like(self.hidden_bias, 2.0).log().sum(-1)
        return (self.noise_scale.log() + 0.5 * math.log(2 * math.pi)).sum() + half

    def _sample_visible(self, field: Tensor) -> Tensor:
        return field + self.noise_scale * torch.randn_like(field)
