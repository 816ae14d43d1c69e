r"""NVIL: the score-function gradient with a network as baseline and a normalised learning signal.

With :math:`f = \log p(x, z) - \log q(z \mid x)`, the running mean c and variance v of what the network leaves over,

.. math:: \frac{f - c - b(x; \omega)}{\max(1, \sqrt v)} \nabla \log q(z \mid x) + \nabla f, \qquad
          \omega \text{ by } \nabla_\omega \frac{(f - c - b(x; \omega))^2}{\max(1, v)}.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO

__all__ = ["NVIL"]


class NVIL(MultiSampleELBO):
    """The evidence lower bound of guides with discrete sites, by one draw of each row and a network of the row.

    The network has a layer of tanh units, reads the first tensor among the arguments that has an entry for each row,
    and is trained by an Adam optimizer of the objective's own. It, the running averages and the optimizer are state of
    the objective. Averages of earlier steps are used, so that the gradient of the guide is unbiased but for the
    division by the standard deviation, which makes it shorter; `normalize=False` leaves that out. For a baseline of
    each site, under `TraceGraph_ELBO`, see `handlers.baseline`.

    Args:
        hidden: Units of the network.
        learning_rate: Step size of its optimizer.
        decay: Weight of the past in the running averages, in [0, 1).
        normalize: Divide the signal by its running standard deviation, where that is above 1 nat.

    Raises:
        ValueError: An option is out of range, or no argument has an entry for each row.

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
        if not 0 <= decay < 1:
            raise ValueError(f"NVIL: expected decay in [0, 1); got {decay}.")
        if not learning_rate > 0:
            raise ValueError(f"NVIL: expected learning_rate > 0; got {learning_rate}.")
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.decay = decay
        self.normalize = normalize
        self.averages = torch.zeros(3, dtype=torch.float64)  # weight, mean, variance
        self.center = torch.zeros(())
        self._network: nn.Sequential | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._pending: dict[str, Any] | None = None
        self._baseline = torch.zeros(())

    def bound(self, draws: Draws) -> Tensor:
        """Log p - log q of the draw."""
        return draws.log_weight.mean(0)

    def surrogate(self, draws: Draws) -> Tensor:
        """The score times the normalised signal, and the terms that are differentiated themselves."""
        cost = draws.log_weight.detach()
        weight, mean, variance = (float(value) for value in self.averages)
        left = cost - mean / max(weight, 1e-12) - self._baseline.to(cost)
        spread = max(1.0, variance / max(weight, 1e-12)) if self.normalize else 1.0
        signal = left.detach()
        self._learn((draws.scale * left.square()).sum() / (spread * draws.scale.sum().clamp(min=1e-12)))
        counts = (draws.scale > 0).expand(signal.shape)
        if bool(counts.any()):
            seen = signal[counts].double()
            now = torch.stack([torch.ones_like(seen[0]), seen.mean() + mean / max(weight, 1e-12), seen.square().mean()])
            self.averages = (self.decay * self.averages.to(now) + (1 - self.decay) * now).cpu()
        return (signal / spread**0.5 * draws.score + draws.log_joint - draws.entropy).mean(0)

    def _both(self, model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        draws = self.draw(model, guide, args, kwargs)
        self._baseline = self._evaluate(draws.score, [*args, *kwargs.values()])
        loss = -(draws.scale * self.bound(draws)).sum().detach()
        return loss, -(draws.scale * self.surrogate(draws)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and running averages."""
        if self._network is None or self._optimizer is None:
            return self._pending or {}
        return {
            "network": dict(self._network.state_dict()),
            "optimizer": self._optimizer.state_dict(),
            "center": self.center.clone(),
            "averages": self.averages.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the network follows at the next step, when its input is known."""
        self._pending, self._network = copy.deepcopy(state) or None, None

    def _evaluate(self, score: Tensor, values: list[Any]) -> Tensor:
        """The network's value of every row, in the shape of the rows or one that broadcasts to it."""
        sizes = score.shape[1:]
        for value in values:
            if isinstance(value, Tensor) and value.dim() and len(value) in sizes:
                dim = [size == len(value) for size in sizes].index(True) - len(sizes)
                rows = value.detach().reshape(len(value), -1).to(score.dtype)
                network = self._network or self._make(rows)
                return network(rows - self.center.to(rows)).reshape(-1, *(1,) * (-1 - dim))
        raise ValueError(
            f"NVIL: expected an argument with an entry for each row, shape {tuple(sizes)}; got none. "
            "Pass the rows as a tensor, or use LeaveOneOut."
        )

    def _make(self, rows: Tensor) -> nn.Sequential:
        """The network, 0 at first, of rows with their mean taken off."""
        with torch.random.fork_rng():  # a resumed run makes it anew, and must not draw other samples for that
            first, last = nn.Linear(rows.shape[1], self.hidden), nn.Linear(self.hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        network = nn.Sequential(first, nn.Tanh(), last).to(rows)
        self.center = rows.mean(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        if self._pending is not None:
            state, self._pending = self._pending, None
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            self.center, self.averages = state["center"].to(rows), state["averages"].clone()
        self._network, self._optimizer = network, optimizer
        return network

    def _learn(self, error: Tensor) -> None:
        """A step of the network along the squared error."""
        if error.requires_grad and self._optimizer is not None and bool(torch.isfinite(error)):
            self._optimizer.zero_grad()
            error.backward()
            self._optimizer.step()
