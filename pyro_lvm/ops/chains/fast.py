"""Posteriors from the rescaled recursions over probabilities, for the chains that these do not lose."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.chains.blocks import cut
from pyro_lvm.ops.chains.inputs import Chains
from pyro_lvm.ops.chains.scaled import Backward, Forward, negligible

__all__ = ["FastFilter", "FastPosterior"]


class FastFilter:
    """The forward recursion of N chains.

    Attributes:
        log_likelihood: Log p(x), shape (N,), nats, float64.
    """

    def __init__(self, chains: Chains, block: int) -> None:
        self.chains = chains
        self.transition, self._transition_shift = _exponentials(chains.transition, (-2, -1))
        blocks = cut(chains.num_chains, chains.num_steps, chains.lengths, block, chains.emission.device)
        first, self._first_shift = _exponentials((chains.initial + chains.emission[:, 0]).mT, (0,))
        emission, self._emission_shift = _exponentials(
            blocks.gather(chains.emission, chains.scratch), (0,), in_place=True
        )
        if not blocks.whole:
            self._emission_shift.masked_fill_(blocks.steps == 0, 0.0)
        self.forward = Forward(blocks, first, self.transition, emission, chains.scratch)
        total = self.forward.first_scale.double().log() + self._first_shift[0] + self._over_transitions().sum(-1)
        of_blocks = self.forward.log_scale() + self._emission_shift[0].sum(0, dtype=torch.float64)
        self.log_likelihood = total.index_add_(0, blocks.chain, of_blocks)

    @property
    def lost(self) -> Tensor:
        """The chains of which too much underflows, shape (N,)."""
        # every state is predicted with the least transition at least, so what underflows is a small part of that,
        # and what is to come multiplies both
        least = self.transition.flatten(1).amin(1).double() if self.transition.shape[1] else 1.0
        return ~negligible(self.forward.losses / least, self.chains.num_states, self.chains.emission.dtype)

    @property
    def probabilities(self) -> Tensor:
        """Filtered probabilities, shape (N, T, K), zero in the padding."""
        return self.forward.in_order().movedim(0, -1)

    @property
    def increments(self) -> Tensor:
        """Log p(x_t | x before t), shape (N, T), nats, float64; of no meaning in the padding."""
        forward = self.forward
        increments = forward.blocks.in_order(
            forward.first_scale.double().log() + self._first_shift[0],
            forward.scale.double().log() + self._emission_shift[0],
        )
        increments[:, 1:] += self._over_transitions()
        return increments

    def lagged(self, lag: int) -> tuple[Tensor, Tensor]:
        """Probabilities given x up to `lag` steps later, shape (N, T, K), and the chains lost thereby, shape (N,)."""
        chains, forward, transition = self.chains, self.forward, self.transition
        ratio = forward.blocks.in_order(torch.zeros_like(forward.first), forward.emission / forward.scale)
        ratio = ratio.movedim(0, -1)
        onwards = torch.ones_like(ratio)
        for _ in range(lag):
            weighed = ratio[:, 1:] * onwards[:, 1:]
            if not chains.homogeneous:
                earlier = (transition @ weighed.unsqueeze(-1)).squeeze(-1)
            else:
                earlier = weighed @ (transition[0, 0] if len(transition) == 1 else transition[:, 0]).mT
            if chains.valid is not None:
                earlier = torch.where(chains.valid[:, 1:, None], earlier, 1.0)
            onwards[:, :-1] = earlier
        # 1 / c, zero in the padding
        inverse = forward.blocks.in_order(forward.first_scale.reciprocal(), forward.kept.reciprocal())
        losses = (onwards.amax(-1) * inverse).sum(-1, dtype=torch.float64)
        return self.probabilities.mul_(onwards), self.lost | ~negligible(losses, chains.num_states, ratio.dtype)

    def _over_transitions(self) -> Tensor:
        """What was taken out of the transitions, float64, shape (N, T - 1)."""
        chains = self.chains
        shift = self._transition_shift[..., 0, 0].double().expand(chains.num_chains, chains.num_steps - 1)
        return shift if chains.valid is None else torch.where(chains.valid[:, 1:], shift, 0.0)


class FastPosterior(FastFilter):
    """The forward and the backward recursion of N chains."""

    def __init__(self, chains: Chains, block: int) -> None:
        super().__init__(chains, block)
        self._backward = Backward(self.forward)
        self._lost = ~negligible(self._backward.losses, chains.num_states, chains.emission.dtype)
        if bool(self._lost.any()):
            self._forget()

    @property
    def lost(self) -> Tensor:
        """The chains of which too much underflows, shape (N,)."""
        return self._lost

    def _forget(self) -> None:
        """Zeros for the chains that are lost: what is no number would spread in sums over chains."""
        forward, backward = self.forward, self._backward
        for values in (forward.first, backward.first):
            values[:, self._lost] = 0.0
        blocks = self._lost[forward.blocks.chain]
        for values in (forward.before, forward.after, backward.joint, backward.weighed):
            values[..., blocks] = 0.0

    def marginals(self) -> Tensor:
        """Posterior probabilities of the states, shape (N, T, K), zero in the padding."""
        forward, backward = self.forward, self._backward
        first = forward.first * backward.first
        return forward.blocks.in_order(first, backward.joint, self.chains.scratch).movedim(0, -1)

    def log_forward(self) -> Tensor:
        """Log p(state at t | x up to t), shape (N, T, K), float64."""
        return self.probabilities.double().log()

    def transitions(self, weights: Tensor | None = None, *, per_step: bool, sum_batch: bool) -> Tensor:
        """Expected transitions, shape (N or 1, T - 1, K, K) if `per_step`, else (N or 1, K, K)."""
        blocks, chains, transition = self.forward.blocks, self.chains, self.transition
        before, after = self.forward.before, self._backward.weighed
        if weights is not None:
            before = before * weights.to(before.dtype)[blocks.chain]
        together = sum_batch and len(transition) == 1
        if per_step or not chains.homogeneous:
            start, end = (
                blocks.in_order(torch.zeros_like(self.forward.first), values)[..., 1:] for values in (before, after)
            )
            if together:
                counts = (start.permute(2, 0, 1) @ end.permute(2, 1, 0)).unsqueeze(0) * transition
            else:
                start, end = start.movedim(0, -1), end.movedim(0, -1)
                counts = (start.unsqueeze(-1) * end.unsqueeze(-2)).mul_(transition)
            if not per_step:
                counts = counts.sum(1)
        elif together:
            # not one product over places and blocks: it has few numbers out and many in, which is three times slower
            return (before.movedim(1, 0) @ after.permute(1, 2, 0)).sum(0, keepdim=True) * transition[:, 0]
        else:
            per_block = before.permute(2, 0, 1) @ after.permute(2, 1, 0)
            counts = per_block.new_zeros(chains.num_chains, *per_block.shape[1:])
            counts.index_add_(0, blocks.chain, per_block).mul_(transition[:, 0])
        return counts.sum(0, keepdim=True) if sum_batch else counts


def _exponentials(logarithms: Tensor, dims: tuple[int, ...], *, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Exponentials up to the largest, and its logarithm (zero where nothing is possible)."""
    largest = logarithms.amax(dims, keepdim=True)
    largest = largest.masked_fill_(largest.isneginf(), 0.0)
    return torch.sub(logarithms, largest, out=logarithms if in_place else None).exp_(), largest
