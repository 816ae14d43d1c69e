"""Posteriors from the rescaled recursions over probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.chains.inputs import Chains
from pyro_lvm.ops.chains.scaled import Scaled, largest_growth

__all__ = ["FastPosterior"]


class FastPosterior:
    """The posterior of all states of N chains, for those chains that are not lost.

    Attributes:
        lost: Chains whose probabilities leave the range of floats, shape (N,).
    """

    def __init__(self, chains: Chains, block: int) -> None:
        self._chains = chains
        initial, start_shift = _exponentials(chains.initial, (-1,))
        self._transition, transition_shift = _exponentials(chains.transition, (-2, -1))
        emission, emission_shift = _exponentials(chains.emission, (-1,))
        self._passes = passes = Scaled(initial, self._transition, emission, chains.lengths, block)
        self.lost = ~(passes.growth <= largest_growth(chains.num_states, emission.dtype))
        total = start_shift.double().squeeze(-1) + emission_shift.double().sum((1, 2))
        total = total + _over_steps(transition_shift.double().flatten(1), chains)
        total += passes.first_scale.double().log().squeeze(-1)
        self.log_likelihood = total.index_add_(0, passes.blocks.chain, passes.scale.double().log_().sum((0, 2)))
        if bool(self.lost.any()):
            self._forget()

    def _forget(self) -> None:
        """Zeros for chains that are lost: what is no number would spread in sums over chains."""
        passes, lost = self._passes, self.lost
        for rows in (passes.first, passes.first_onwards):
            rows[lost] = 0.0
        blocks = lost[passes.blocks.chain]
        for places in (passes.before, passes.after, passes.onwards, passes.weighed):
            places[:, blocks] = 0.0

    def marginals(self) -> Tensor:
        """Posterior probabilities of the states, shape (N, T, K), zero in the padding."""
        passes = self._passes
        empty = torch.zeros_like if self._chains.lengths is not None else torch.empty_like
        result = empty(self._chains.emission)
        torch.mul(passes.first, passes.first_onwards, out=result[:, 0])
        passes.blocks.scatter(passes.after * passes.onwards, result)
        return result

    def transitions(self, weights: Tensor | None = None, *, per_step: bool, sum_batch: bool) -> Tensor:
        """Expected transitions, shape (N or 1, T - 1, K, K) if `per_step`, else (N or 1, K, K)."""
        passes, blocks, chains = self._passes, self._passes.blocks, self._chains
        before, after = passes.before, passes.weighed
        if weights is not None:
            before = before * weights.to(before.dtype)[blocks.chain, None]
        if per_step or not chains.homogeneous:
            return self._per_step(before, after, per_step, sum_batch)
        if sum_batch and len(self._transition) == 1:
            # one product over all places and blocks is slower: few numbers out, many in
            return (before.mT @ after).sum(0, keepdim=True) * self._transition[:, 0]
        per_block = before.permute(1, 2, 0) @ after.permute(1, 0, 2)
        counts = before.new_zeros(chains.num_chains, *per_block.shape[1:]).index_add_(0, blocks.chain, per_block)
        counts *= self._transition[:, 0]
        return counts.sum(0, keepdim=True) if sum_batch else counts

    def _per_step(self, before: Tensor, after: Tensor, per_step: bool, sum_batch: bool) -> Tensor:
        blocks, chains = self._passes.blocks, self._chains
        ordered = []
        for values in (before, after):
            result = torch.zeros_like(chains.emission)
            blocks.scatter(values, result)
            ordered.append(result[:, 1:])
        if sum_batch and len(self._transition) == 1:
            pairs = (ordered[0].permute(1, 2, 0) @ ordered[1].permute(1, 0, 2)).unsqueeze(0) * self._transition
        else:
            pairs = (ordered[0].unsqueeze(-1) * ordered[1].unsqueeze(-2)).mul_(self._transition)
            pairs = pairs.sum(0, keepdim=True) if sum_batch else pairs
        return pairs if per_step else pairs.sum(1)


def _exponentials(logarithms: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Exponentials up to the largest, and its logarithm (zero where nothing is possible)."""
    largest = logarithms.amax(dims, keepdim=True)
    largest = largest.masked_fill_(largest.isneginf(), 0.0)
    return (logarithms - largest).exp_(), largest


def _over_steps(shift: Tensor, chains: Chains) -> Tensor:
    """The sum over the transitions of each chain of numbers of shape (N or 1, T - 1 or 1)."""
    if chains.homogeneous:
        return shift.squeeze(-1) * chains.last
    if chains.valid is not None:
        shift = torch.where(chains.valid[:, 1:], shift, 0.0)
    return shift.sum(-1)
