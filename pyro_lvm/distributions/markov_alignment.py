"""Sentences whose alignment is a Markov chain of jumps: the law of the HMM alignment model."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.distributions.aligned_sentence import AlignedSentence, Counts
from pyro_lvm.distributions.lexicon import Lexicon
from pyro_lvm.ops import chains
from pyro_lvm.ops.sentence_pairs import Group, Memory

__all__ = ["MarkovAlignment", "bins_of_first", "bins_of_jumps"]


def bins_of_first(size: int, num_bins: int) -> Int[Tensor, " size"]:
    """Which score each position of a source sentence has as the first one; the last score is for all that follow."""
    return torch.arange(size).clamp_max(num_bins - 1)


def bins_of_jumps(size: int, num_bins: int) -> Int[Tensor, "size size"]:
    """Which score each jump has, [previous position, next]; the outermost scores are for all wider jumps."""
    widest = num_bins // 2
    positions = torch.arange(size)
    return (positions - positions.unsqueeze(-1)).clamp(-widest, widest) + widest


class MarkovAlignment(AlignedSentence):
    r"""Target sentences along which the translated source position moves in jumps.

    .. math::

        p(z_j = i \mid i') = (1 - p_0) \frac{c(i - i')}{\sum_{l=1}^I c(l - i')}, \qquad p(z_j = 0 \mid i') = p_0

    where :math:`i'` is the last position that was not the empty word: a state of the chain is that position and whether
    the empty word is translated instead, 2 I states in all. The first position has scores of its own.

    Args:
        lexicon: The law of a target word given the source word that it translates.
        source: Source words, padded, shape (n, I_max).
        source_lengths: Number of source words, >= 1, shape (n,).
        lengths: Number of target words, >= 1, shape (n,).
        num_steps: Width of the padded target sentences.
        initial_probs: Scores of the first position, shape (W + 1,), the last for all later ones; normalised over the
            words of each source sentence.
        jump_probs: Scores of jumps -W to W, shape (2 W + 1,), the outermost for all wider ones; normalised likewise.
        null_probability: Probability p_0 of the empty word, in [0, 1).
        memory: Keeps the layout of sentences that come again.

    References:
        S. Vogel, H. Ney, C. Tillmann (1996), HMM-based word alignment in statistical translation, COLING, equation 7.
        F. Och, H. Ney (2003), A systematic comparison of various statistical alignment models, Computational
            Linguistics 29(1), section 2.1.2 (the empty word).
    """

    def __init__(
        self,
        lexicon: Lexicon,
        source: Int[Tensor, "n sources"],
        source_lengths: Int[Tensor, " n"],
        lengths: Int[Tensor, " n"],
        num_steps: int,
        initial_probs: Float[Tensor, " positions"],
        jump_probs: Float[Tensor, " jumps"],
        null_probability: float,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(lexicon, source, source_lengths, lengths, num_steps, memory)
        self.initial_probs, self.jump_probs, self.null_probability = initial_probs, jump_probs, null_probability
        self.parameters = [*lexicon.parameters, initial_probs, jump_probs]
        self._chains: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def chain(self, size: int) -> tuple[Float[Tensor, " states"], Float[Tensor, "1 states states"]]:
        """Log-probabilities of the first state and of transitions for a source sentence of I = `size` words.

        States are the positions, then the positions with the empty word in their place.
        """
        key = size, torch.is_grad_enabled()
        if key not in self._chains:
            first = _normalised(self.initial_probs[bins_of_first(size, len(self.initial_probs))])
            jumps = _normalised(self.jump_probs[bins_of_jumps(size, len(self.jump_probs))])
            null = math.log(self.null_probability) if self.null_probability else -math.inf
            word = math.log1p(-self.null_probability)
            stay = torch.full_like(jumps, -torch.inf).fill_diagonal_(null)
            transition = torch.cat([word + jumps, stay], -1).repeat(2, 1)
            self._chains[key] = torch.cat([word + first, null + first]), transition.unsqueeze(0)
        return self._chains[key]

    def _inputs(self, group: Group, emission: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = group.num_source_words
        states = torch.cat([emission[..., 1:], emission[..., :1].expand(*emission.shape[:-1], size)], -1)
        return *self.chain(size), states, group.lengths

    def _score(self, group: Group, emission: Tensor) -> Tensor:
        return chains.log_likelihood(*self._inputs(group, emission))

    def _smooth(self, group: Group, emission: Tensor, weights: Tensor | None, counts: Counts | None) -> Tensor:
        size = group.num_source_words
        same = weights is None or bool((weights == weights[0]).all())
        found = chains.smooth(*self._inputs(group, emission), sum_batch=same)
        marginals = found.marginals if weights is None else found.marginals * weights.reshape(-1, 1, 1)
        word, null = marginals.split(size, -1)
        if counts is not None and weights is not None:
            moves = found.transitions
            moves = moves * weights[0] if same else (moves * weights.reshape(-1, 1, 1)).sum(0)
            counts.first.append((size, (word + null)[:, 0].sum(0)))
            counts.moves.append((size, moves[:size, :size] + moves[size:, :size]))
        return torch.cat([null.sum(-1, keepdim=True), word], -1)

    def _decode(self, group: Group, emission: Tensor) -> Tensor:
        path, _ = chains.viterbi(*self._inputs(group, emission))
        return torch.where(path < group.num_source_words, path + 1, 0)

    def _draw_posterior(self, group: Group, emission: Tensor, count: int) -> Tensor:
        path = chains.sample(*self._inputs(group, emission), num_samples=count)
        return torch.where(path < group.num_source_words, path + 1, 0)

    def _draw(self, size: int, number: int) -> Tensor:
        initial, transition = self.chain(size)
        states = [torch.distributions.Categorical(logits=initial).sample(torch.Size([number]))]
        for _ in range(self.event_shape[0] - 1):
            states.append(torch.distributions.Categorical(logits=transition[0, states[-1]]).sample())
        drawn = torch.stack(states, -1)
        return torch.where(drawn < size, drawn + 1, 0)


def _normalised(scores: Tensor) -> Tensor:
    """Logarithms of scores divided by their sums, -inf where a score is zero."""
    positive = scores > 0
    logs = torch.where(positive, torch.where(positive, scores, 1.0).log(), -torch.inf)
    return logs - scores.sum(-1, keepdim=True).log()
