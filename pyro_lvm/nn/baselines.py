r"""Baselines of one site: what is subtracted from the cost of a draw before it multiplies the draw's score.

With :math:`s = \nabla \log q(z)` and cost :math:`J = \log p - \log q` of what lies downstream of :math:`z`,
:math:`E[s\,(J - b)] = E[s J]` for every :math:`b` that does not depend on the draw :math:`z`. All here learn from
batches *after* their value was used, so that no value depends on the draw that it is subtracted for.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["Average", "Baseline", "Constant", "Network", "SelfCritic"]


class Baseline(nn.Module):
    """A baseline of one site. A further kind defines `forward`, and `learn` unless its parameters learn by themselves.

    `handlers.baseline` trains parameters by the squared error of `forward`, and tells `learn` the errors.
    """

    needs_scores = False

    def forward(self, given: Tensor | None) -> Tensor:
        """The baseline in nats, a number or one for each row; `given` is what the kind is computed from, by row."""
        raise NotImplementedError

    def learn(self, error: Tensor, weights: Tensor) -> None:
        """Take note of cost minus baseline of some draws, nats, and of the weights of these draws."""


class Average(Baseline):
    r"""The weighted average of the costs of past batches, :math:`\sum w J / \sum w`, older ones forgotten.

    With equal weights it is the moving average; with weights :math:`|s|^2` the constant of least variance,
    :math:`E[J s^2] / E[s^2]`.

    Args:
        decay: What remains of a batch's weight after the next one, in [0, 1).
        by_score: Whether draws weigh by their squared score.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, decay: float, by_score: bool = False) -> None:
        super().__init__()
        self.decay = decay
        self.needs_scores = by_score
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, given: Tensor | None) -> Tensor:
        """The average so far; 0 before the first batch."""
        return torch.where(self.weight > 0, self.total / self.weight, torch.zeros_like(self.total))

    def learn(self, error: Tensor, weights: Tensor) -> None:
        """Move towards the costs of a batch."""
        costs = self(None) + error
        self.total.mul_(self.decay).add_((1 - self.decay) * (weights * costs).mean())
        self.weight.mul_(self.decay).add_((1 - self.decay) * weights.mean())


class Constant(Baseline):
    """A trained number, which starts at the mean cost of the first batch."""

    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(()))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, given: Tensor | None) -> Tensor:
        """The number."""
        return self.constant

    def learn(self, error: Tensor, weights: Tensor) -> None:
        """Start at the mean cost of the first batch."""
        if not self.started:
            self.constant.data.add_(error.mean())
            self.started.fill_(1.0)


class Network(Baseline):
    r"""A function of the row, :math:`b(x; \omega)`, above a moving average.

    Args:
        input_dim: Length of a row.
        decay: As in `Average`.
        network: Maps rows, shape (n, d), to shape (n, 1) or (n,); by default 100 tanh units, which start at 0.
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, input_dim: int, decay: float, network: nn.Module | None = None) -> None:
        super().__init__()
        if network is None:
            last = nn.Linear(100, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.network: nn.Module = nn.Sequential(nn.Linear(input_dim, 100), nn.Tanh(), last)
        else:
            self.network = copy.deepcopy(network)
        self.average = Average(decay)
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, given: Tensor | None) -> Tensor:
        """The network at the rows, centred by the mean of the first batch; a missing entry counts as that mean."""
        rows = given if given is not None else self.mean.unsqueeze(0)
        if not self.seen and torch.is_grad_enabled():
            self.mean.copy_(rows.nanmean(0).nan_to_num())
            self.seen.fill_(1.0)
        value = self.network((rows - self.mean).nan_to_num())
        return value.reshape(len(rows)) + self.average(None)

    def learn(self, error: Tensor, weights: Tensor) -> None:
        """Move the average; the network learns from the squared error."""
        self.average.learn(error, weights)


class SelfCritic(Baseline):
    """The likelihood of the row at the guide's most probable draw, above a moving average.

    Args:
        decay: As in `Average`.

    References:
        S. Rennie, E. Marcheret, Y. Mroueh, J. Ross, V. Goel (2017), Self-critical sequence training, CVPR, equation 7.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.average = Average(decay)

    def forward(self, given: Tensor | None) -> Tensor:
        """The likelihood, nats, moved by the average of what it misses."""
        value = self.average(None)
        return value if given is None else given + value

    def learn(self, error: Tensor, weights: Tensor) -> None:
        """Move the average."""
        self.average.learn(error, weights)
