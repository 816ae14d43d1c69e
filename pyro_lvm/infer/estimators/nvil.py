r"""NVIL: the score-function gradient with a network as baseline and a normalised learning signal.

With :math:`f = \log p(x, z) - \log q(z \mid x)`, the running mean c and variance v of what the network leaves over,

.. math:: \frac{f - c - b(x; \omega)}{\max(1, \sqrt v)} \nabla \log q(z \mid x) + \nabla f, \qquad
          \omega \text{ by } \nabla_\omega \frac{(f - c - b(x; \omega))^2}{\max(1, v)}.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO
from pyro_lvm.infer.estimators.networks import OwnNetworks, RowNetwork
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["NVIL"]


class NVIL(MultiSampleELBO):
    """The evidence lower bound of guides with discrete sites, by one draw of each row and a network of the row.

    The network has a layer of tanh units, reads what the model observes in the row, and is trained by an Adam optimizer
    of the objective's own. It, the running averages and the optimizer are state of the objective. Averages of earlier
    steps are used, so that the gradient of the guide is unbiased but for the division by the standard deviation, which
    makes it shorter; `normalize=False` leaves that out. For a baseline of each site, under `TraceGraph_ELBO`, see
    `handlers.baseline`.

    Args:
        hidden: Units of the network.
        learning_rate: Step size of its optimizer.
        decay: Weight of the past in the running averages, in [0, 1).
        normalize: Divide the signal by its running standard deviation, where that is above 1 nat.

    Raises:
        ValueError: An option is out of range.

    References:
        A. Mnih, K. Gregor (2014), Neural variational inference and learning in belief networks, ICML, algorithm 1.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=slope * x))
        >>> fit = lvm.fit(model, torch.tensor([-2.0, -1.0, 1.0, 2.0]), guide, "nvil", max_epochs=9, progress=False)
        >>> len(fit.history["loss"])
        9
    """

    least_samples = 1

    def __init__(
        self, hidden: int = 100, learning_rate: float = 0.001, decay: float = 0.8, normalize: bool = True
    ) -> None:
        super().__init__(1)
        self.hidden = whole_number("NVIL", "hidden", hidden)
        self.learning_rate = real_number("NVIL", "learning_rate", learning_rate)
        self.decay = real_number("NVIL", "decay", decay, "in [0, 1)")
        self.normalize = normalize
        self.averages = torch.zeros(3, dtype=torch.float64)  # weight, mean, variance
        self.networks = OwnNetworks(RowNetwork, self.hidden, self.learning_rate)

    def bound(self, draws: Draws) -> Tensor:
        """Log p - log q of the draw."""
        return draws.log_weight.mean(0)

    def surrogate(self, draws: Draws) -> Tensor:
        """The score times the normalised signal, and the terms that are differentiated themselves."""
        cost, context = draws.log_weight.detach(), draws.observed
        weight, mean, variance = (float(value) for value in self.averages)
        left = cost - mean / max(weight, 1e-12) - self.networks.get("row", context)(context)
        spread = max(1.0, variance / max(weight, 1e-12)) if self.normalize else 1.0
        signal = left.detach()
        error = (draws.scale * left.square()).sum() / (spread * draws.scale.sum().clamp(min=1e-12))
        counts = (draws.scale > 0).expand(signal.shape)
        if self.networks.learn(error) and bool(counts.any()):
            seen = signal[counts].double()
            now = torch.stack([torch.ones_like(seen[0]), seen.mean() + mean / max(weight, 1e-12), seen.square().mean()])
            self.averages = (self.decay * self.averages.to(now) + (1 - self.decay) * now).cpu()
        return (signal / spread**0.5 * draws.score + draws.log_joint - draws.entropy).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and running averages."""
        return {**self.networks.state_dict(), "averages": self.averages.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.networks.load_state_dict(state)
        self.averages = state["averages"].clone()
