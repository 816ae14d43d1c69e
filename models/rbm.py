r"""Restricted Boltzmann machine: zeros and ones that interact through hidden units.

.. math::

    v_n \sim \mathrm{RBM}(W, b, c), \qquad
    p(v) \propto \sum_h \exp\big((v - \mu)^\top b + (h - \lambda)^\top c + (v - \mu)^\top W (h - \lambda)\big)
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm import distributions
from pyro_lvm.ops.row_checks import check_binary, check_matrix
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["RBM"]


class RBM(LatentVariableModel):
    r"""Restricted Boltzmann machine over rows of zeros and ones, centred.

    ====================  ===========================================  =========  ==================
    symbol                meaning                                      shape      code
    ====================  ===========================================  =========  ==================
    :math:`W`             interactions                                 (d, m)     `weight`
    :math:`b`             visible field at :math:`h = \lambda`         (d,)       `visible_bias`
    :math:`c`             hidden field at :math:`v = \mu`              (m,)       `hidden_bias`
    :math:`\mu`           the columns' means; a constant               (d,)       `visible_offset`
    :math:`\lambda`       :math:`1 / (1 + e^{-c})`                     (m,)
    ====================  ===========================================  =========  ==================

    The offsets are coordinates: the family of laws is that of the usual machine, with biases
    :math:`b - W \lambda` and :math:`c - W^\top \mu`. In them, learning does as well on rows whose zeros and ones are
    exchanged. The hidden offset of Montavon and Müller is a running mean of the hidden units; here it is a function of
    the hidden bias, what the hidden units are at the mean row, which needs no state, and its gradient is taken too.

    The normalizer is exact if there are at most 20 visible or hidden units. Train by "pcd" or "cd".

    Args:
        num_hidden: m >= 1.
        num_visible: Number of columns d; taken from the data by `initialize` if None.
        sample_steps: Gibbs steps of a generated row of a large machine.

    Raises:
        ValueError: An argument is out of range.

    References:
        P. Smolensky (1986), Information processing in dynamical systems: foundations of harmony theory.
        G. Hinton (2002), Training products of experts by minimizing contrastive divergence, Neural Computation 14.
        G. Montavon, K.-R. Müller (2012), Deep Boltzmann machines and the centering trick, equation 5.
        J. Melchior, A. Fischer, L. Wiskott (2016), How to center deep Boltzmann machines, JMLR 17.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("digits234").x
        >>> fit = lvm.fit(lvm.models.RBM(8), x, max_epochs=3, seed=0, progress=False)
        >>> fit.log_likelihood(x).shape
        torch.Size([541])
    """

    dims: ClassVar[dict[str, list[str]]] = {
        "weight": ["visible", "hidden"],
        "visible_bias": ["visible"],
        "hidden_bias": ["hidden"],
    }
    rows_site = "v"

    def __init__(self, num_hidden: int, num_visible: int | None = None, sample_steps: int = 1000) -> None:
        super().__init__()
        self.num_hidden = whole_number(self._name, "num_hidden", num_hidden)
        self.num_visible = None if num_visible is None else whole_number(self._name, "num_visible", num_visible)
        self.sample_steps = whole_number(self._name, "sample_steps", sample_steps)
        if self.num_visible is not None:
            self._declare(torch.full((self.num_visible,), 0.5))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(self, x: Float[Tensor, "n d"] | None = None, *, size: int | None = None) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d); None to generate.
            size: Number of rows to generate.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: There are neither rows nor a size.
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected rows x or a size to generate; got neither.")
        law = self.law()
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("v", law, obs=x)

    def law(self) -> distributions.RBM:
        """The law of a row."""
        return distributions.RBM(self.weight, self.visible_bias, self.hidden_bias, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "visible_offset": self.visible_offset,
            "hidden_offset": None,
            "base_visible_bias": self.base_visible_bias,
            "sample_steps": self.sample_steps,
        }

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix of zeros and ones with the right number of columns."""
        check_matrix(self._name, x, self.num_visible, "num_visible")
        check_binary(self._name, x, "Threshold it, draw torch.bernoulli(x), or use GaussianRBM.")

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows, or rows that do not fit the model."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"{self._name}: expected at least 2 rows to learn from; got {len(x)}. Add rows.")

    def initialize(self, x: Tensor) -> None:
        """Start from independent units with the columns' means, and small random weights.

        Args:
            x: Rows, shape (n, d).

        Raises:
            ValueError: Rows do not fit the model, or there are fewer than two.
        """
        self.check_training(x)
        self.num_visible = x.shape[1]
        mean = (x.sum(0) + 0.5) / (len(x) + 1)  # inside of (0, 1) for constant columns too
        self._declare(mean)

    def _declare(self, mean: Tensor) -> None:
        """Declare the parameters around the mean row."""
        bias = self._bias_at(mean)
        self.register_buffer("visible_offset", mean)
        self.register_buffer("base_visible_bias", bias)
        weight = 0.01 * torch.randn(len(mean), self.num_hidden, dtype=mean.dtype, device=mean.device)
        self.declare("weight", weight, constraints.real)
        self.declare("visible_bias", bias, constraints.real)
        self.declare("hidden_bias", mean.new_zeros(self.num_hidden), constraints.real)

    def _bias_at(self, mean: Tensor) -> Tensor:
        return mean.logit()
