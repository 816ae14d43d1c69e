"""Networks that belong to an objective: they read rows, and learn by an optimizer of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["OwnNetworks", "RowNetwork"]


class RowNetwork(nn.Module):
    """A number for each row from what is known of it: a layer of tanh units, 0 at first.

    Args:
        context_dim: Entries of a row.
        values_dim: Further entries, which are taken as they come.
        hidden: Units.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, context_dim: int, values_dim: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [context_dim, values_dim]
        self.first = nn.Linear(context_dim + values_dim, hidden)
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("center", torch.zeros(context_dim))
        self.register_buffer("spread", torch.ones(context_dim))

    def look_at(self, context: Tensor) -> None:
        """Take the rows' means off from now on, and divide by their standard deviations where these are above 1."""
        rows = context.reshape(-1, context.shape[-1])
        self.center.copy_(rows.nanmean(0).nan_to_num())
        self.spread.copy_((rows - self.center).square().nanmean(0).sqrt().nan_to_num(1.0).clamp(min=1.0))

    def forward(self, context: Tensor, *values: Tensor) -> Tensor:
        """The numbers, nats, shape (K, rows...); a missing entry counts as the mean.

        Args:
            context: Shape (K, rows..., context_dim).
            values: The further entries, shape (K, rows..., values_dim).
        """
        known = ((context - self.center) / self.spread).nan_to_num()
        return self.last(torch.tanh(self.first(torch.cat([known, *values], -1)))).squeeze(-1)


class OwnNetworks:
    """Networks by name, and the Adam optimizer that they share.

    Args:
        kind: Makes a network from the sizes of what it reads and its number of units.
        hidden: Units of each.
        learning_rate: Step size.
    """

    def __init__(self, kind: Callable[[int, int, int], RowNetwork], hidden: int, learning_rate: float) -> None:
        self.kind = kind
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.by_name: dict[str, Any] = {}
        self._optimizer: Any = None

    def get(self, site: str, context: Tensor, values_dim: int = 0) -> Any:
        """The network of a site, or one for each length of rows if batches differ in it.

        Args:
            site: Name of the site.
            context: Shape (K, rows..., entries): the first is what its network is centred by.
            values_dim: Further entries of a row.
        """
        name = f"{site} {context.shape[-1]} {values_dim}"
        if name not in self.by_name:
            with torch.random.fork_rng():  # draws of the guide are the same whether a network is made or was loaded
                self._add(name, self.kind(context.shape[-1], values_dim, self.hidden).to(context))
            self.by_name[name].look_at(context)
        return self.by_name[name]

    def learn(self, loss: Tensor) -> bool:
        """A step down a loss; whether it was finite, without which there is none."""
        finite = bool(torch.isfinite(loss))
        if finite and loss.requires_grad:
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        return finite

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimizer."""
        networks = {n: {"sizes": part.sizes, "state": dict(part.state_dict())} for n, part in self.by_name.items()}
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return copy.deepcopy({"networks": networks, "optimizer": optimizer})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.by_name, self._optimizer = {}, None
        for name, part in state["networks"].items():
            context_dim, values_dim = part["sizes"]
            self._add(name, self.kind(context_dim, values_dim, self.hidden).to(part["state"]["center"]))
            self.by_name[name].load_state_dict(part["state"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _add(self, name: str, network: RowNetwork) -> None:
        self.by_name[name] = network
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        else:
            self._optimizer.add_param_group({"params": list(network.parameters())})
