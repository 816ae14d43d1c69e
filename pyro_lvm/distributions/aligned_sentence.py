r"""The law of a sentence that translates another, the alignment of its words summed out.

.. math:: p(e_{1:J} \mid f_{1:I}) = \sum_{z_{1:J}} p(z_{1:J} \mid I, J) \prod_j t(e_j \mid f_{z_j}), \qquad z_j = 0..I

Every target word translates one source word, or (:math:`z_j = 0`) the empty word :math:`f_0`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.lexicon import Lexicon
from pyro_lvm.ops.sentence_pairs import Group, Memory, lay_out

__all__ = ["AlignedSentence", "Counts"]


@dataclass
class Counts:
    """Expected numbers of events in the alignments of sentences: what an M-step needs.

    Attributes:
        words: How often each entry of the lexicon was used, shape (values,).
        positions: For each length I of source sentences, how often each target position took each source position,
            the empty word first, shape (J, 1 + I); target positions end where the longest sentence of a group does.
        first: For each I, how often the first step began from each source position, shape (I,).
        moves: For each I, how often a source position followed another, shape (I, I).
    """

    words: Tensor
    positions: list[tuple[int, Tensor]] = field(default_factory=list)
    first: list[tuple[int, Tensor]] = field(default_factory=list)
    moves: list[tuple[int, Tensor]] = field(default_factory=list)


class AlignedSentence(TorchDistribution):
    """Base: target sentences given source sentences, a lexicon, and a law of alignments that a subclass gives.

    Args:
        lexicon: The law of a target word given the source word that it translates.
        source: Source words, padded, shape (n, I_max).
        source_lengths: Number of source words, >= 1, shape (n,).
        lengths: Number of target words, >= 1, shape (n,).
        num_steps: Width of the padded target sentences.
        memory: Keeps the layout of sentences that come again, as in every step of EM.

    Attributes:
        summed_out: What latent variables the law sums out, in a word; plans and predictions go by it.
        latent: What they are called among draws from their posterior.
    """

    summed_out, latent = "alignments", "z"
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - models check words and lengths once

    def __init__(
        self,
        lexicon: Lexicon,
        source: Int[Tensor, "n sources"],
        source_lengths: Int[Tensor, " n"],
        lengths: Int[Tensor, " n"],
        num_steps: int,
        memory: Memory | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.lexicon = lexicon
        self.parameters = lexicon.parameters
        self.source, self.source_lengths, self.lengths = source, source_lengths, lengths
        self.memory = Memory() if memory is None else memory
        super().__init__(torch.Size([len(source)]), torch.Size([num_steps]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Words are whole numbers."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    def log_prob(self, value: Float[Tensor, "n targets"] | Int[Tensor, "n targets"]) -> Float[Tensor, " n"]:
        """Log-probability of target sentences, nats; what stands in the padding does not matter."""
        groups = self.groups(value)
        found = torch.cat([self._score(group, self._emission(group)) for group in groups])
        return found.new_zeros(len(value)).index_put((torch.cat([group.rows for group in groups]),), found)

    def posterior(self, value: Tensor) -> Float[Tensor, "n targets sources"]:
        """Posterior of the source position that each target word translates.

        Args:
            value: Target sentences, shape (n, J).

        Returns:
            Shape (n, J, 1 + I_max), the empty word first; zero in the padding.
        """
        table = self.lexicon.log_probs.new_zeros(*value.shape, 1 + self.source.shape[1])
        for group, part in self._smoothed(value):
            table[group.rows, : part.shape[1], : part.shape[2]] = part
        return table

    def most_probable(self, value: Tensor) -> Int[Tensor, "n targets"]:
        """The most probable alignment: source positions from 1, 0 for the empty word, -1 in the padding.

        Args:
            value: Target sentences, shape (n, J).
        """
        return self._paths(value, self._decode)

    def posterior_sample(self, value: Tensor, count: int) -> Int[Tensor, "count n targets"]:
        """Alignments drawn from their posterior, each in the form of `most_probable`.

        Args:
            value: Target sentences, shape (n, J).
            count: Number of draws.
        """
        return self._paths(value, lambda group, emission: self._draw_posterior(group, emission, count), count)

    def _paths(self, value: Tensor, find: Callable[[Group, Tensor], Tensor], *leading: int) -> Tensor:
        paths = torch.full((*leading, *value.shape), -1, device=value.device)
        with torch.no_grad():
            for group in self.groups(value):
                path = find(group, self._emission(group))
                paths[..., group.rows, : path.shape[-1]] = torch.where(group.inside, path, -1)
        return paths

    def sample_alignments(self) -> Int[Tensor, "n targets"]:
        """Draw alignments before any target word is known: source positions from 1, 0 for the empty word."""
        drawn = torch.zeros(self._batch_shape + self._event_shape, dtype=torch.long, device=self.source.device)
        for size in self.source_lengths.unique().tolist():
            rows = (self.source_lengths == size).nonzero().flatten()
            drawn[rows] = self._draw(int(size), len(rows))
        return drawn

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Int[Tensor, "..."]:  # noqa: B008
        """Draw target sentences of the given lengths, zeros after their ends."""
        with torch.no_grad():
            draws = [self._translate(self.sample_alignments()) for _ in range(torch.Size(sample_shape).numel())]
            return torch.stack(draws).reshape(*sample_shape, *draws[0].shape)

    def _translate(self, alignment: Tensor) -> Tensor:
        empty = torch.full_like(self.source[:, :1], self.lexicon.empty_word)
        words = self.lexicon.sample(torch.cat([empty, self.source], 1).gather(1, alignment))
        inside = torch.arange(words.shape[1], device=words.device) < self.lengths.unsqueeze(-1)
        return torch.where(inside, words, 0)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> AlignedSentence:
        """The same law: its batch is that of its source sentences."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"{type(self).__name__}: expected a batch of {tuple(self.batch_shape)}, one for each source sentence; "
                f"got {tuple(batch_shape)}. Repeat source sentences instead."
            )
        return self

    def expected_counts(self, value: Tensor, weights: Tensor) -> Counts:
        """The E-step: expected counts over all sentences, with respect to the posterior of their alignments.

        Args:
            value: Target sentences, shape (n, J).
            weights: How often each sentence counts, shape (n,).
        """
        counts = Counts(torch.zeros_like(self.lexicon.log_probs))
        for group, part in self._smoothed(value, weights, counts):
            counts.words.index_add_(0, group.cells.reshape(-1), part.reshape(-1))
        return counts

    def groups(self, value: Tensor) -> list[Group]:
        """The sentence pairs in groups of one source length, each with its entries in the lexicon."""

        def compute() -> list[Group]:
            words, lengths = value.long(), self.lengths.long()
            sources = self.source.long(), self.source_lengths.long()
            return lay_out(*sources, words, lengths, self.lexicon.empty_word, self.lexicon.find)

        return self.memory.get((value, self.source, self.source_lengths, self.lengths), compute)

    def _emission(self, group: Group) -> Tensor:
        """Log t(e | f), shape (g, J, 1 + I); zero after the end of a sentence."""
        table = self.lexicon.log_probs.index_select(0, group.cells.reshape(-1)).reshape(group.cells.shape)
        return table.masked_fill_(~group.inside.unsqueeze(-1), 0.0)

    def _smoothed(
        self, value: Tensor, weights: Tensor | None = None, counts: Counts | None = None
    ) -> Iterator[tuple[Group, Tensor]]:
        """Posteriors of groups, times weights, shape (g, J, 1 + I); what they say of alignments goes to the counts."""
        with torch.no_grad():
            for group in self.groups(value):
                each = None if weights is None else weights.expand(len(value))[group.rows]
                yield group, self._smooth(group, self._emission(group), each, counts)

    @abstractmethod
    def _score(self, group: Group, emission: Tensor) -> Tensor:
        """Log-likelihood of each pair of a group, shape (g,), nats."""

    @abstractmethod
    def _smooth(self, group: Group, emission: Tensor, weights: Tensor | None, counts: Counts | None) -> Tensor:
        """Posterior of each target word's source position times the pair's weight, shape (g, J, 1 + I)."""

    @abstractmethod
    def _decode(self, group: Group, emission: Tensor) -> Tensor:
        """Most probable positions, shape (g, J)."""

    @abstractmethod
    def _draw_posterior(self, group: Group, emission: Tensor, count: int) -> Tensor:
        """Positions drawn from their posterior, shape (count, g, J)."""

    @abstractmethod
    def _draw(self, size: int, number: int) -> Tensor:
        """Alignments to source sentences of I = `size` words, shape (number, J)."""
