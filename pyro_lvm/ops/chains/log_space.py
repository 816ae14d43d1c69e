r"""Messages along chains in logarithms: exact whatever the range, differentiable to all orders, in any semiring.

The message of step t is :math:`\alpha_t = (\alpha_{t-1} \otimes A_t) + e_t`, where the product sums (or maximises) over
the previous state. The product is associative. So a long chain is cut into blocks, the matrix of every block is
multiplied out for all blocks at once, the blocks are a shorter chain with these matrices as its transitions, and from
the messages between blocks those within them follow, again for all blocks at once. Blocks of two steps make the
work-efficient parallel scan, of logarithmic depth; one block makes the plain recursion.

References:
    G. Blelloch (1990), Prefix sums and their applications, CMU-CS-90-190.
    S. Särkkä, Á. García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE TAC 66.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pyro_lvm.ops.chains.inputs import Chains

__all__ = ["Reduction", "log_sum", "maximum", "messages", "messages_back"]

Reduction = Callable[[Tensor, int], Tensor]


def log_sum(values: Tensor, dim: int) -> Tensor:
    """Log of the sum of exponentials; -inf without a gradient where all are -inf."""
    largest = values.detach().amax(dim, keepdim=True)
    largest = largest.masked_fill(largest.isneginf(), 0.0)
    total = (values - largest).exp().sum(dim)
    impossible = total == 0
    return (total.masked_fill(impossible, 1.0).log() + largest.squeeze(dim)).masked_fill(impossible, -torch.inf)


def maximum(values: Tensor, dim: int) -> Tensor:
    """The largest value."""
    return values.amax(dim)


def messages(chains: Chains, block: int, reduce: Reduction = log_sum) -> Tensor:
    """The forward messages, log p(x up to t, state at t) under `log_sum`; the last one goes on into the padding.

    Args:
        chains: In logarithms.
        block: Steps in a block; T or more for the plain recursion.
        reduce: `log_sum`, or `maximum` for the best path's instead of the sum over all.

    Returns:
        Shape (N, T, K), nats.
    """
    first = (chains.initial + chains.emission[:, 0]).unsqueeze(1)
    steps = chains.num_steps - 1
    if not steps:
        return first
    block = min(block, steps)
    blocks = -(-steps // block)
    advance = _Blocks(chains, block, blocks, reduce)
    if blocks == 1:
        between = first
    else:
        identity = torch.full((chains.num_states,) * 2, -torch.inf).fill_diagonal_(0.0).to(first)
        product = identity.expand(chains.num_chains, blocks, -1, -1)
        for step in range(block):
            product = advance(product, step)
        between = messages(
            Chains(
                initial=first[:, 0],
                transition=product[:, :-1],
                emission=torch.zeros_like(first).expand(-1, blocks, -1),
                lengths=None,
                batch=chains.batch,
            ),
            block,
            reduce,
        )
    current = between.unsqueeze(2)
    within = []
    for step in range(block):
        current = advance(current, step)
        within.append(current)
    return torch.cat([first, torch.cat(within, 2).flatten(1, 2)[:, :steps]], 1)


def messages_back(chains: Chains, block: int) -> Tensor:
    """The backward messages with their own step's emission, log p(x from t on | state at t).

    Returns:
        Shape (N, T, K), nats; what is in the padding means nothing.
    """
    order = (chains.last.unsqueeze(-1) - torch.arange(chains.num_steps, device=chains.emission.device)).clamp_min(0)
    rows = torch.arange(chains.num_chains, device=order.device).unsqueeze(-1)
    transition = chains.transition.mT
    if not chains.homogeneous:
        transition = transition.expand(chains.num_chains, -1, -1, -1)[rows, order[:, 1:]]
    turned = replace(
        chains,
        initial=torch.zeros_like(chains.initial),
        transition=transition,
        emission=chains.emission[rows, order],
    )
    return messages(turned, block)[rows, order]


class _Blocks:
    """One step onwards at the same place of every block."""

    def __init__(self, chains: Chains, block: int, blocks: int, reduce: Reduction) -> None:
        self.reduce = reduce
        extra = block * blocks - (chains.num_steps - 1)
        valid = chains.valid
        if valid is None and extra:
            valid = torch.ones(1, chains.num_steps, dtype=torch.bool, device=chains.emission.device)
        self.valid = None if valid is None else _cut(valid[:, 1:], extra, block)
        self.emission = _cut(chains.emission[:, 1:], extra, block)
        self.transition = chains.transition.unsqueeze(1)
        if not chains.homogeneous:
            self.transition = _cut(chains.transition, extra, block)

    def __call__(self, values: Tensor, step: int) -> Tensor:
        """Vectors of shape (N, blocks, m, K) after their block's step, unchanged where that is padding."""
        transition = self.transition[:, :, min(step, self.transition.shape[2] - 1), None]
        onwards = self.reduce(values.unsqueeze(-1) + transition, -2) + self.emission[:, :, step, None]
        if self.valid is None:
            return onwards
        return torch.where(self.valid[:, :, step, None, None], onwards, values)


def _cut(values: Tensor, extra: int, block: int) -> Tensor:
    """Time axis (1) into blocks, zeros at the end."""
    if extra:
        values = torch.cat([values, values.new_zeros(values.shape[0], extra, *values.shape[2:])], 1)
    return values.unflatten(1, (-1, block))
