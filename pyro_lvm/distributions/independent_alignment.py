"""Sentences whose words are aligned independently of each other: the law of IBM Models 1 and 2."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.distributions.aligned_sentence import AlignedSentence, Counts
from pyro_lvm.distributions.lexicon import Lexicon
from pyro_lvm.ops.sentence_pairs import Group, Memory

__all__ = ["IndependentAlignment"]


class IndependentAlignment(AlignedSentence):
    r"""Target sentences whose words translate source words that are chosen independently.

    .. math:: p(e_{1:J} \mid f_{1:I}) = \prod_j \sum_{i=0}^I a(i \mid j, I)\, t(e_j \mid f_i)

    Args:
        lexicon: The law of a target word given the source word that it translates.
        source: Source words, padded, shape (n, I_max).
        source_lengths: Number of source words, >= 1, shape (n,).
        lengths: Number of target words, >= 1, shape (n,).
        num_steps: Width of the padded target sentences.
        position_probs: a(i | j, I) at [I - 1, j - 1, i], zero where i > I; every law is normalised. Uniform for
            sentences longer than the table, and altogether if None.
        memory: Keeps the layout of sentences that come again.

    References:
        P. Brown, S. Della Pietra, V. Della Pietra, R. Mercer (1993), The mathematics of statistical machine
            translation, Computational Linguistics 19(2), equations 17 and 25.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions.lexicon import DenseLexicon
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])  # the last source word is the empty one
        >>> lexicon = DenseLexicon(probs.log(), torch.arange(3), empty_word=2)
        >>> one = torch.tensor([2])
        >>> law = IndependentAlignment(lexicon, torch.tensor([[0, 1]]), one, one, num_steps=2)
        >>> law.log_prob(torch.tensor([[1, 0]])).exp()
        tensor([0.2489])
    """

    def __init__(
        self,
        lexicon: Lexicon,
        source: Int[Tensor, "n sources"],
        source_lengths: Int[Tensor, " n"],
        lengths: Int[Tensor, " n"],
        num_steps: int,
        position_probs: Float[Tensor, "lengths targets sources"] | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(lexicon, source, source_lengths, lengths, num_steps, memory)
        self.position_probs = position_probs
        self.parameters = [*lexicon.parameters, *([] if position_probs is None else [position_probs])]

    def log_positions(self, size: int, num_steps: int) -> Float[Tensor, "targets sources"]:
        """Log a(i | j, I) for a source sentence of I = `size` words, shape (num_steps, 1 + size), nats."""
        uniform = self.lexicon.log_probs.new_full((num_steps, 1 + size), -math.log(1 + size))
        table = self.position_probs
        if table is None or size > len(table):
            return uniform
        known = table[size - 1, :num_steps, : 1 + size]
        positive = known > 0
        logs = torch.where(positive, torch.where(positive, known, 1.0).log(), -torch.inf)
        return torch.cat([logs - known.sum(-1, keepdim=True).log(), uniform[len(known) :]])

    def _joint(self, group: Group, emission: Tensor) -> Tensor:
        return emission + self.log_positions(group.num_source_words, emission.shape[1])

    def _score(self, group: Group, emission: Tensor) -> Tensor:
        return torch.where(group.inside, self._joint(group, emission).logsumexp(-1), 0.0).sum(-1)

    def _smooth(self, group: Group, emission: Tensor, weights: Tensor | None, counts: Counts | None) -> Tensor:
        inside = group.inside.to(emission) if weights is None else group.inside * weights.unsqueeze(-1)
        posterior = self._joint(group, emission).softmax(-1) * inside.unsqueeze(-1)
        if counts is not None:
            counts.positions.append((group.num_source_words, posterior.sum(0)))
        return posterior

    def _decode(self, group: Group, emission: Tensor) -> Tensor:
        return self._joint(group, emission).argmax(-1)

    def _draw_posterior(self, group: Group, emission: Tensor, count: int) -> Tensor:
        law = torch.distributions.Categorical(logits=self._joint(group, emission), validate_args=False)
        return law.sample(torch.Size([count]))

    def _draw(self, size: int, number: int) -> Tensor:
        law = torch.distributions.Categorical(logits=self.log_positions(size, self.event_shape[0]))
        return law.sample(torch.Size([number]))
