"""Paths through pointers: where a chain comes from, given where it is, followed without a loop over all steps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["follow"]

# Steps that are followed one by one; longer chains are cut into blocks whose pointers are composed.
LOOP = 256


def follow(pointers: Tensor, last: Tensor) -> Tensor:
    """The states of a path that ends in a given state.

    Args:
        pointers: The previous state for each step and next state, shape (N, S, K).
        last: The last state, shape (N,).

    Returns:
        Shape (N, S + 1).
    """
    chains, steps, states = pointers.shape
    block = steps if steps <= LOOP else max(2, round(steps ** (1 / 3)))
    blocks = -(-steps // block) if steps else 0
    if blocks <= 1:
        ends = last.unsqueeze(-1)
    else:
        stay = torch.arange(states, device=pointers.device)
        extra = stay.expand(chains, block * blocks - steps, states)
        pointers = torch.cat([pointers, extra], 1)
        composed = stay.expand(chains, blocks, states)
        for step in reversed(range(block)):
            composed = pointers[:, step::block].gather(-1, composed)
        ends = follow(composed, last)[:, 1:]
    paths = [ends]
    for step in reversed(range(block if steps else 0)):
        paths.append(pointers[:, step::block].gather(-1, paths[-1].unsqueeze(-1)).squeeze(-1))
    within = torch.stack(paths[:0:-1], -1).flatten(1)[:, :steps] if steps else last.new_zeros(chains, 0)
    return torch.cat([within, last.unsqueeze(-1)], 1)
