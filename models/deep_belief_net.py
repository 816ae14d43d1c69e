r"""Deep belief net: directed layers of binary units under a restricted Boltzmann machine.

.. math::

    h^{(L-1)} &\sim \mathrm{RBM}(W, b, c) \quad \text{with hidden units } h^{(L)} \text{ summed out} \\
    h^{(l)} \mid h^{(l+1)} &\sim \mathrm{Bernoulli}(\sigma(W_l h^{(l+1)} + b_l)), \qquad l = L-2, \dots, 1 \\
    x \mid h^{(1)} &\sim \mathrm{Bernoulli}(\sigma(W_0 h^{(1)} + b_0))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pyro_lvm import distributions
from pyro_lvm.models.rbm import RBM
from pyro_lvm.models.sigmoid_belief_net import SigmoidBeliefNet
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["DeepBeliefNet"]


class DeepBeliefNet(SigmoidBeliefNet):
    r"""Directed net of binary units whose topmost site, `h1` to `h(L-1)` being sites, is the visible side of a machine.

    ==============  ==========================================  ==============  =====================
    symbol          meaning                                     shape           code
    ==============  ==========================================  ==============  =====================
    :math:`W`       interactions of the two top layers          (H_L-1, H_L)    `top.weight`
    :math:`b, c`    fields of the two top layers, centred       (H_L-1,), (H_L,)  `top.visible_bias`, `top.hidden_bias`
    :math:`W_l`     weights from layer l + 1 to layer l         (H_l, H_l+1)    `decoder[l].weight`
    :math:`b_l`     log-odds of layer l when all above is off   (H_l,)          `decoder[l].bias`
    ==============  ==========================================  ==============  =====================

    The top layer is summed out: it is no site, and its recognition given the layer below is exact. The machine is an
    `RBM`, centred. `lvm.greedy_pretrain` learns such a net layer by layer; the inference "up-down" fine-tunes it, or
    learns it from a random start.

    Args:
        hidden: Units of each hidden layer, next to the data first, at least two.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        sample_steps: Gibbs steps of the top layers of a generated row, if they are too large for exact draws.

    Raises:
        ValueError: An argument is out of range.

    References:
        G. Hinton, S. Osindero, Y.-W. Teh (2006), A fast learning algorithm for deep belief nets, Neural Computation 18.
        R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, section 3.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.models.DeepBeliefNet(hidden=(4, 3, 2), data_dim=5)(size=4).shape
        torch.Size([4, 5])
    """

    _fewest: ClassVar[int] = 2

    def __init__(
        self, hidden: Sequence[int] = (500, 500, 2000), data_dim: int | None = None, sample_steps: int = 1000
    ) -> None:
        self.sample_steps = whole_number(type(self).__name__, "sample_steps", sample_steps)
        super().__init__(hidden, data_dim)

    @property
    def layers(self) -> tuple[int, ...]:
        """Units of each layer that is a site, `h1` first: all but the topmost."""
        return self.hidden[:-1]

    def machine(self, level: int) -> RBM:
        """An untrained machine between a layer, 0 for the rows, and the one above it."""
        return RBM(self.hidden[level], sample_steps=self.sample_steps)

    def prepare(self, machine: RBM, below: RBM) -> None:
        """Start a machine as the law of the hidden units of the one below, if it has units enough.

        It then begins with the bound that the net had without it.

        Args:
            machine: Declared, not trained yet.
            below: Trained, with as many hidden units as the machine has visible ones.
        """
        law, size = below.law(), len(below.visible_offset)
        if size > machine.num_hidden:
            return
        with torch.no_grad():
            weight, hidden_bias = machine.weight.clone(), torch.zeros_like(machine.hidden_bias)
            weight[:, :size] = law.weight.mT
            hidden_bias[:size] = law.visible_field(torch.zeros_like(law.hidden_bias))
            hidden_bias += machine.visible_offset @ weight
            visible_bias = law.hidden_logits(torch.zeros_like(law.visible_bias)) + weight @ hidden_bias.sigmoid()
            for name, value in (("weight", weight), ("visible_bias", visible_bias), ("hidden_bias", hidden_bias)):
                getattr(machine, name).unconstrained().data.copy_(value)

    def place(self, level: int, machine: RBM) -> None:
        """Let a trained machine become the directed layer `decoder[level]`, or the top one.

        Args:
            level: 0 for the machine of the rows.
            machine: With `hidden[level]` hidden units.
        """
        if level == len(self.layers):
            self.top.load_state_dict(machine.state_dict())
            return
        law, layer = machine.law(), cast(nn.Linear, self.decoder[level])
        with torch.no_grad():
            layer.weight.copy_(law.weight)
            layer.bias.copy_(law.visible_field(torch.zeros_like(law.hidden_bias)))

    def _top_law(self) -> distributions.RBM:
        return self.top.law()

    def _declare_top(self, like: Tensor) -> None:
        self.top = RBM(self.hidden[-1], self.hidden[-2], self.sample_steps).to(like)
