r"""A posterior for every row that bends a normal one by inverse autoregressive flows.

.. math::

    z^0_n &\sim \mathrm{Normal}(g_\mu(x_n), \mathrm{diag}(g_\sigma(x_n)^2)) \\
    z^t_{nj} &= z^{t-1}_{nj} + m_{tj}, \qquad m_{tj} \text{ from } z^{t-1}_{n,<j} \text{ and, if asked for, } h(x_n)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor

from pyro_lvm._pyro import network
from pyro_lvm.guides.amortized_gaussian import AmortizedGaussian
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["InverseAutoregressive"]


# A flow is learned more slowly than what it bends.
RATE = 0.3


class InverseAutoregressive(AmortizedGaussian):
    r"""An amortised normal law followed by autoregressive flows that shift every coordinate, and start as the identity.

    The bound then takes most of the divergence in its closed form, that of the normal law, and only what the flows bend
    from the draw. Draws cost one pass through the networks, and so do their densities. The density of any other value
    takes one pass for each of its k coordinates. The order of the coordinates is reversed from flow to flow.

    By default all rows share the flows, as they would a learned prior: bent back by them, the posteriors are normal and
    the prior is not. Flows that see features of the row from the encoder fit training rows better, and others worse.

    The flows do not scale, as those of the paper do: a scale could be traded for that of the normal law, which nothing
    then keeps from growing, and with it the noise of the closed form, until training breaks down.

    Args:
        model: The model, initialised.
        encoder: As in `AmortizedGaussian`, but with `flow_features` more outputs.
        hidden: Sizes of the encoder's hidden layers; by default the model's in reverse.
        num_flows: T >= 1.
        flow_hidden: Width of each flow's hidden layer; by default the first of the model's hidden layers, at least k.
        flow_features: Length of h, what the encoder tells the flows of a row, >= 0.
        latent_dim: k >= 1; taken from the model if None, as are the two below.
        data_dim: d >= 1.
        covariate_dim: q >= 0.
        site: As in `AmortizedGaussian`.

    Raises:
        ValueError: A size is out of range, or neither given nor known to the model.

    References:
        D. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling (2016), Improved variational inference
            with inverse autoregressive flow, NeurIPS, algorithm 1 and equation 10.
        X. Chen, D. Kingma, T. Salimans, Y. Duan, P. Dhariwal, J. Schulman, I. Sutskever, P. Abbeel (2017), Variational
            lossy autoencoder, ICLR, section 3.2.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> guide = lvm.guides.InverseAutoregressive(lvm.models.VAE(2, data_dim=5, hidden=[8]))
        >>> guide(torch.zeros(3, 5)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        model: Callable | None = None,
        encoder: torch.nn.Module | None = None,
        hidden: Sequence[int] | None = None,
        num_flows: int = 2,
        flow_hidden: int | None = None,
        flow_features: int = 0,
        latent_dim: int | None = None,
        data_dim: int | None = None,
        covariate_dim: int | None = None,
        site: str | None = None,
    ) -> None:
        checked = partial(whole_number, "InverseAutoregressive")
        self.num_flows = checked("num_flows", num_flows)
        self.features = self.flow_features = checked("flow_features", flow_features, least=0)
        super().__init__(model, encoder, hidden, latent_dim, data_dim, covariate_dim, site)
        k = self.latent_dim
        width = max(k, [*self.hidden, 512][-1]) if flow_hidden is None else flow_hidden
        self.flow_hidden = checked("flow_hidden", width, least=k)
        order = torch.arange(k)
        nets = []
        for flow in range(self.num_flows):
            net = _Shifts(
                k,
                self.flow_features,
                [self.flow_hidden],
                param_dims=[1],
                permutation=order if flow % 2 == 0 else order.flip(0),
            )
            _start_at_zero(net)
            nets.append(net)
        self.flows = torch.nn.ModuleList(nets)
        self.flows.to(self.unit)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        own = {name: getattr(self, name) for name in ("num_flows", "flow_hidden", "flow_features")}
        return {**super().config, **own}

    def posterior(self, x: Tensor, covariates: Tensor | None = None) -> Any:
        """The law of the latent vector of every row, batch shape (n,), event shape (k,)."""
        loc, scale, features = self.encode(x, covariates)
        nets: Any = network(self, "flows")
        steps = [transforms.ConditionalAffineAutoregressive(net).condition(features) for net in nets]
        return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), steps)


class _Shifts(ConditionalAutoRegressiveNN):
    """Shifts, and logarithms of scales, which are zero."""

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        shift = RATE * super().forward(x, context)
        return shift, torch.zeros_like(shift)


def _start_at_zero(net: Any) -> None:
    """Let a network say 0, whatever it is given."""
    for layer in (net.layers[-1], net.skip_layer):
        for parameter in layer.parameters() if layer is not None else ():
            torch.nn.init.zeros_(parameter)
