"""Posteriors from messages in logarithms: for chains whose probabilities leave the range of floats."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_lvm.ops.chains.inputs import Chains
from pyro_lvm.ops.chains.log_space import log_sum, messages, messages_back

__all__ = ["ExactPosterior", "block_length", "filter_exactly", "lag_exactly", "log_evidence", "pieces"]

# Numbers in one piece of the pairwise posteriors; larger pieces gain nothing and take memory.
PIECE = 2**24
# Steps of a chain, and numbers N K^3 in a step over blocks, up to and from which a plain loop is no slower than blocks.
SHORT, WIDE = 256, 2**13


def block_length(chains: Chains, algorithm: str = "auto") -> int:
    """Steps in a block of the recursion in logarithms."""
    if algorithm == "scan":
        return 2
    wide = chains.num_chains * chains.num_states**3 > WIDE
    if algorithm == "sequential" or (algorithm == "auto" and (chains.num_steps <= SHORT or wide)):
        return chains.num_steps
    return max(2, round(chains.num_steps ** (1 / 3)))


def pieces(chains: Chains) -> Iterator[slice]:
    """The T - 1 transitions in pieces, so that a matrix for each of them in a piece takes little memory."""
    size = max(1, PIECE // max(1, chains.num_chains * chains.num_states**2))
    for begin in range(0, chains.num_steps - 1, size):
        yield slice(begin, min(begin + size, chains.num_steps - 1))


def log_evidence(chains: Chains, algorithm: str = "auto") -> Tensor:
    """Log p(x) of each chain, shape (N,), nats; differentiable to all orders by plain autograd."""
    return log_sum(chains.at_last(messages(chains, block_length(chains, algorithm))), -1)


class ExactPosterior:
    """The posterior of all states of N chains, computed in float64 logarithms."""

    def __init__(self, chains: Chains, algorithm: str = "auto") -> None:
        self._dtype = chains.emission.dtype
        self._chains = chains = chains.detach().double()
        block = block_length(chains, algorithm)
        self._forward = messages(chains, block)
        self._backward = messages_back(chains, block)
        self._evidence = log_sum(chains.at_last(self._forward), -1)
        # probabilities are exp(a - evidence): of what is impossible, exp(-inf - 0) = 0
        self._shift = self._evidence.masked_fill(self._evidence.isneginf(), 0.0)
        self.log_likelihood = self._evidence

    def log_forward(self) -> Tensor:
        """Log p(state at t, x up to t), shape (N, T, K), nats."""
        return self._forward

    def marginals(self) -> Tensor:
        """Posterior probabilities of the states, shape (N, T, K), zero in the padding."""
        chains = self._chains
        impossible = chains.emission.isneginf()
        onwards = self._backward - chains.emission.masked_fill(impossible, 0.0)
        result = (self._forward + onwards - self._shift[:, None, None]).exp_().masked_fill_(impossible, 0.0)
        if chains.valid is not None:
            result.masked_fill_(~chains.valid.unsqueeze(-1), 0.0)
        return result.to(self._dtype)

    def transitions(self, weights: Tensor | None = None, *, per_step: bool, sum_batch: bool) -> Tensor:
        """Expected transitions, chains times `weights` of shape (N,), all steps summed unless `per_step`."""
        chains = self._chains
        sizes = (1 if sum_batch else chains.num_chains, chains.num_steps - 1, *[chains.num_states] * 2)
        result = chains.emission.new_zeros(sizes if per_step else (sizes[0], *sizes[2:]))
        for steps, piece in self._pairs(weights):
            if sum_batch:
                piece = piece.sum(0, keepdim=True)
            if per_step:
                result[:, steps] = piece
            else:
                result += piece.sum(1)
        return result.to(self._dtype)

    def _pairs(self, weights: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Posterior probabilities of two successive states, a piece of the steps at a time."""
        chains = self._chains
        valid = chains.valid
        for steps in pieces(chains):
            after = slice(steps.start + 1, steps.stop + 1)
            transition = chains.transition if chains.homogeneous else chains.transition[:, steps]
            piece = self._forward[:, steps, :, None] + self._backward[:, after, None, :] + transition
            piece = piece.sub_(self._shift[:, None, None, None]).exp_()
            if valid is not None:
                piece.masked_fill_(~valid[:, after, None, None], 0.0)
            if weights is not None:
                piece *= weights.double()[:, None, None, None]
            yield steps, piece


def filter_exactly(chains: Chains, algorithm: str) -> tuple[Tensor, Tensor]:
    """Filtered probabilities, shape (N, T, K), and log p(x_t | x before t), shape (N, T), nats."""
    forward = messages(chains.double(), block_length(chains, algorithm))
    evidence = log_sum(forward, -1)
    impossible = evidence.isneginf()
    shift = evidence.masked_fill(impossible, 0.0)
    before = torch.cat([torch.zeros_like(shift[:, :1]), shift[:, :-1]], 1)
    return (forward - shift.unsqueeze(-1)).exp(), evidence - before


def lag_exactly(chains: Chains, lag: int, algorithm: str) -> Tensor:
    """Probabilities of each state given x up to `lag` steps later, shape (N, T, K)."""
    chains = chains.double()
    forward = messages(chains, block_length(chains, algorithm))
    onwards = torch.zeros_like(forward)
    for _ in range(lag):
        later = onwards[:, 1:] + chains.emission[:, 1:]
        for steps in pieces(chains):
            transition = chains.transition if chains.homogeneous else chains.transition[:, steps]
            piece = log_sum(transition + later[:, steps].unsqueeze(-2), -1)
            if chains.valid is not None:
                piece = piece.masked_fill(~chains.valid[:, 1:][:, steps, None], 0.0)
            onwards[:, :-1][:, steps] = piece
    joint = forward + onwards
    evidence = log_sum(joint, -1)
    return (joint - evidence.masked_fill(evidence.isneginf(), 0.0).unsqueeze(-1)).exp()
