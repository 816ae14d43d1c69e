"""Which transitions of a Markov chain are possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Topology", "possible_moves"]

Topology = str | Sequence[Sequence[float]] | Tensor | None


def possible_moves(caller: str, topology: Topology, num_states: int) -> tuple[Tensor, Tensor, Any]:
    """What a user may say about transitions, as tables.

    Args:
        caller: Who asks, for errors.
        topology: None for all; "left-to-right" for those to the same and the next state, from the first on; or a
            table of zeros and ones, row by previous state.
        num_states: K.

    Returns:
        Possible first states, shape (K,); possible transitions, shape (K, K), both zeros and ones; and the topology as
        it can be written to a file.

    Raises:
        ValueError: It is something else, or there is no way out of a state.

    Example:
        >>> possible_moves("Example", "left-to-right", 2)[1]
        tensor([[1., 1.],
                [0., 1.]])
    """
    k = num_states
    if topology is None:
        return torch.ones(k), torch.ones(k, k), None
    if isinstance(topology, str):
        if topology != "left-to-right":
            raise ValueError(
                f"{caller}: expected topology to be None, 'left-to-right' or a ({k}, {k}) table; got {topology!r}."
            )
        return torch.eye(k)[0], torch.eye(k) + torch.ones(k - 1).diag(1), topology
    table = torch.as_tensor(topology).float()
    if table.shape != (k, k) or not bool(((table == 0) | (table == 1)).all()):
        raise ValueError(
            f"{caller}: expected topology to be a ({k}, {k}) table of zeros and ones, row by previous state; got shape "
            f"{tuple(table.shape)} and values from {table.min().item():g} to {table.max().item():g}. "
            "Pass transition_probs > 0, for example."
        )
    closed = (table.sum(-1) == 0).nonzero().flatten().tolist()
    if closed:
        raise ValueError(f"{caller}: expected a transition out of every state in topology; state {closed[0]} has none.")
    return torch.ones(k), table, table.long().tolist()
