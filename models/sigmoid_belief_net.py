r"""Sigmoid belief net: layers of units, each a coin whose odds the layer above sets.

.. math::

    h^{(L)} &\sim \mathrm{Bernoulli}(\sigma(b_L)) \\
    h^{(l)} \mid h^{(l+1)} &\sim \mathrm{Bernoulli}(\sigma(W_l h^{(l+1)} + b_l)), \qquad l = L-1, \dots, 1 \\
    x \mid h^{(1)} &\sim \mathrm{Bernoulli}(\sigma(W_0 h^{(1)} + b_0))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyro_lvm._pyro import network
from pyro_lvm.ops.row_checks import check_binary, check_matrix
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["SigmoidBeliefNet"]


class SigmoidBeliefNet(LatentVariableModel):
    r"""Directed net of binary units with any number of hidden layers, `h1` next to `x`.

    With `guides.RecognitionNet` and `lvm.infer.WakeSleep` it is the Helmholtz machine.

    ==============  ==========================================  ============  =====================
    symbol          meaning                                     shape         code
    ==============  ==========================================  ============  =====================
    :math:`b_L`     log-odds of the top layer                   (H_L,)        `top_bias`
    :math:`W_l`     weights from layer l + 1 to layer l         (H_l, H_l+1)  `decoder[l].weight`
    :math:`b_l`     log-odds of layer l when all above is off   (H_l,)        `decoder[l].bias`
    ==============  ==========================================  ============  =====================

    Args:
        hidden: Units of each hidden layer, next to the data first; a number for a single layer.
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        R. Neal (1992), Connectionist learning of belief networks, Artificial Intelligence 56, section 3.
        P. Dayan, G. Hinton, R. Neal, R. Zemel (1995), The Helmholtz machine, Neural Computation 7.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.models.SigmoidBeliefNet(hidden=(3, 2), data_dim=5)(size=4).shape
        torch.Size([4, 5])
    """

    _fewest: ClassVar[int] = 1  # hidden layers

    def __init__(self, hidden: int | Sequence[int] = (200,), data_dim: int | None = None) -> None:
        super().__init__()
        layers = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
        if len(layers) < self._fewest:
            raise ValueError(
                f"{self._name}: expected at least {self._fewest} hidden layers; got hidden={layers}. "
                f"Pass hidden={(200,) * self._fewest}."
            )
        self.hidden = tuple(whole_number(self._name, "hidden", units) for units in layers)
        self.data_dim = None if data_dim is None else whole_number(self._name, "data_dim", data_dim)
        if self.data_dim is not None:
            self._declare(torch.zeros(self.data_dim))

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(self, x: Float[Tensor, "n d"] | None = None, *, size: int | None = None) -> Float[Tensor, "*s n d"]:
        """Run the program.

        Args:
            x: Observed rows of zeros and ones, shape (n, d); None to generate.
            size: Number of rows to generate.

        Returns:
            Rows, shape (n, d).
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected rows x or a size to generate; got neither.")
        decoder, law = cast(nn.ModuleList, network(self, "decoder")), self._top_law()
        with pyro.plate("data", size if x is None else len(x)):
            for level in range(len(self.layers), 0, -1):
                h = pyro.sample(f"h{level}", law)
                law = dist.Bernoulli(logits=decoder[level - 1](h)).to_event(1)
            return pyro.sample("x", law, obs=x)

    @property
    def layers(self) -> tuple[int, ...]:
        """Units of each layer that is a site, `h1` first."""
        return self.hidden

    def _top_law(self) -> Distribution:
        """The law of the topmost site."""
        return dist.Bernoulli(logits=self.top_bias).to_event(1)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix of zeros and ones with the right number of columns."""
        check_matrix(self._name, x, self.data_dim)
        check_binary(self._name, x, "Threshold it, as (x > 0.5).float(), or draw torch.bernoulli(x).")

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer than two rows, or rows that do not fit the model."""
        self.check(x)
        if len(x) < 2:
            raise ValueError(f"{self._name}: expected at least two rows to learn from; got {len(x)} row. Add rows.")

    def initialize(self, x: Tensor) -> None:
        """Draw weights anew, and set the log-odds of the columns to those of the rows' means.

        Args:
            x: Rows, shape (n, d).

        Raises:
            ValueError: Rows that do not fit the model, or fewer than two.
        """
        self.check_training(x)
        self.data_dim = x.shape[1]
        self._declare(torch.logit((x.sum(0) + 0.5) / (len(x) + 1)))

    def _declare(self, visible_bias: Tensor) -> None:
        sizes = (len(visible_bias), *self.layers)
        layers = [nn.Linear(above, below) for below, above in pairwise(sizes)]
        for layer in layers:
            nn.init.zeros_(layer.bias)
        layers[0].bias.data.copy_(visible_bias)
        self.decoder = nn.ModuleList(layers).to(visible_bias)
        self._declare_top(visible_bias)

    def _declare_top(self, like: Tensor) -> None:
        """Declare the parameters of the topmost law, of the type of a tensor."""
        self.declare("top_bias", like.new_zeros(self.hidden[-1]), constraints.real)
