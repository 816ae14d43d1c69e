r"""Restricted Boltzmann machine over real vectors: a product of experts that is normal given its hidden units.

.. math::

    \frac{v_n - \mu}{s} \sim \mathrm{RBM}(W, b, c, \sigma), \qquad
    v \mid h \sim \mathrm{Normal}(\mu + s\, (b + W (h - \lambda)), s^2 \sigma^2)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm import distributions
from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.models.rbm import RBM
from pyro_lvm.ops.row_checks import check_matrix

__all__ = ["GaussianRBM"]


class GaussianRBM(RBM):
    r"""Restricted Boltzmann machine over real rows, with a learned variance of every column, centred.

    ====================  ===========================================  =========  ==================
    symbol                meaning                                      shape      code
    ====================  ===========================================  =========  ==================
    :math:`W`             shifts of the mean                           (d, m)     `weight`
    :math:`b`             mean at :math:`h = \lambda`                  (d,)       `visible_bias`
    :math:`c`             hidden field at :math:`v = \mu`              (m,)       `hidden_bias`
    :math:`\sigma`        standard deviation given hidden units        (d,)       `noise_scale`
    :math:`\mu`           the columns' means; constants                (d,)       `visible_offset`
    :math:`s`             their standard deviations; constants         (d,)       `spread`
    :math:`\lambda`       :math:`1 / (1 + e^{-c})`                     (m,)
    ====================  ===========================================  =========  ==================

    The normalizer is exact if there are at most 20 hidden units. :math:`W, b` and :math:`\sigma` are in units of the
    columns' standard deviations about their means, so that steps of an optimizer are the same in whatever units the
    data come; `law()` is in those of the data.

    Args:
        num_hidden: m >= 1.
        num_visible: Number of columns d; taken from the data by `initialize` if None.
        sample_steps: Gibbs steps of a generated row of a large machine.

    Raises:
        ValueError: An argument is out of range.

    References:
        K. Cho, A. Ilin, T. Raiko (2011), Improved learning of Gaussian-Bernoulli restricted Boltzmann machines, eq. 4.
        J. Melchior, N. Wang, L. Wiskott (2017), Gaussian-binary restricted Boltzmann machines for modeling natural
        image statistics.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.GaussianRBM(2), x / x.std(0), max_epochs=3, seed=0, progress=False)
        >>> fit.log_likelihood(x).shape
        torch.Size([272])
    """

    dims: ClassVar[dict[str, list[str]]] = {**RBM.dims, "noise_scale": ["visible"]}

    def law(self) -> distributions.GaussianRBM:
        """The law of a row."""
        unit = self.spread
        return distributions.GaussianRBM(
            self.weight * unit.unsqueeze(-1),
            self.visible_offset + unit * self.visible_bias,
            self.hidden_bias,
            unit * self.noise_scale,
            **self._options(),
        )

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right number of columns."""
        check_matrix(self._name, x, self.num_visible, "num_visible")

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows, for constant columns, or rows that do not fit the model."""
        super().check_training(x)
        check_real_columns(self._name, x)

    def initialize(self, x: Tensor) -> None:
        """Start from independent normal columns, and small random weights.

        Args:
            x: Rows, shape (n, d).

        Raises:
            ValueError: Rows do not fit the model, or there are fewer than two.
        """
        self.check_training(x)
        self.num_visible = x.shape[1]
        self._declare(x.mean(0), x.std(0))

    def _declare(self, mean: Tensor, spread: Tensor | None = None) -> None:
        super()._declare(mean)
        self.register_buffer("base_visible_bias", mean)
        self.register_buffer("spread", torch.ones_like(mean) if spread is None else spread)
        self.declare("noise_scale", torch.ones_like(mean), constraints.positive)

    def _bias_at(self, mean: Tensor) -> Tensor:
        return torch.zeros_like(mean)
