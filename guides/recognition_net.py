r"""Recognition net: the layers of a belief net guessed from the data upwards.

.. math:: q(h \mid x) = \prod_{l=1}^{L} \mathrm{Bernoulli}\bigl(h^{(l)}; \sigma(R_l h^{(l-1)} + c_l)\bigr),
    \qquad h^{(0)} = x
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_lvm._pyro import network

__all__ = ["RecognitionNet"]


class RecognitionNet(PyroModule):
    r"""The mirror of a net of binary layers `h1`, `h2`, ...: each layer is drawn given the one below it.

    ==============  ======================================  ============  =======================
    symbol          meaning                                 shape         code
    ==============  ======================================  ============  =======================
    :math:`R_l`     weights from layer l - 1 to layer l     (H_l, H_l-1)  `recognition[l-1].weight`
    :math:`c_l`     log-odds of layer l when all is off     (H_l,)        `recognition[l-1].bias`
    ==============  ======================================  ============  =======================

    Args:
        model: A net with `layers`, the units of each layer that is a site, and `data_dim`, known sizes both.

    Raises:
        ValueError: The model has no such layers, or its sizes are not known yet.

    References:
        P. Dayan, G. Hinton, R. Neal, R. Zemel (1995), The Helmholtz machine, Neural Computation 7, equation 3.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> guide = lvm.guides.RecognitionNet(lvm.models.SigmoidBeliefNet(hidden=(3, 2), data_dim=5))
        >>> guide(torch.zeros(4, 5))["h2"].shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        units, data_dim = getattr(model, "layers", None), getattr(model, "data_dim", None)
        if not hasattr(model, "layers"):
            kind = getattr(model, "__name__", type(model).__name__)
            raise ValueError(
                f"RecognitionNet: expected a model whose latent sites are layers of units, as SigmoidBeliefNet; got "
                f"{kind}. Use another guide, as 'amortized' for a VAE."
            )
        if units is None or data_dim is None:
            raise ValueError(
                f"RecognitionNet: expected a model with layers of known sizes; got {type(model).__name__} with "
                f"layers={units} and data_dim={data_dim}. Pass data_dim, or call initialize(x) first."
            )
        sizes = (data_dim, *units)
        like = next(model.parameters())
        layers = [nn.Linear(below, above) for below, above in pairwise(sizes)]
        for layer in layers:
            nn.init.zeros_(layer.bias)
        self.recognition = nn.ModuleList(layers).to(like)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {}

    def place(self, level: int, machine: Any) -> None:
        """Let a layer recognise as a trained machine does; above the layers there is nothing to learn.

        Args:
            level: 0 for the machine of the rows.
            machine: A model whose `law()` is an RBM, as large as the layer.
        """
        if level == len(self.recognition):
            return
        law, layer = machine.law(), cast(nn.Linear, self.recognition[level])
        with torch.no_grad():
            layer.weight.copy_(law.weight.mT)
            layer.bias.copy_(law.hidden_logits(torch.zeros_like(law.visible_bias)))

    def forward(self, x: Float[Tensor, "*s n d"], **kwargs: Any) -> dict[str, Tensor]:
        """Draw every layer given rows `x`, shape (n, d); returns them by name, shape (n, H_l) each."""
        layers, below, drawn = cast(nn.ModuleList, network(self, "recognition")), x, {}
        with pyro.plate("data", x.shape[-2]):
            for level, layer in enumerate(layers, 1):
                below = pyro.sample(f"h{level}", dist.Bernoulli(logits=layer(below)).to_event(1))
                drawn[f"h{level}"] = below
        return drawn
