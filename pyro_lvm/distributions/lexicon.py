"""Lexicons: the law of a target word given the source word that it translates."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.cooccurrences import Cooccurrences

__all__ = ["DenseLexicon", "Lexicon", "SparseLexicon"]


@runtime_checkable
class Lexicon(Protocol):
    """Log-probabilities of target words given source words, as one vector and the way to find a pair in it.

    Attributes:
        empty_word: The source word that stands for none, which untranslated target words come from.
        parameters: The tensors that the values are computed from.
    """

    empty_word: int
    parameters: list[Tensor]

    @property
    def log_probs(self) -> Float[Tensor, " values"]:
        """Log t(e | f) of all pairs that there is a value for, nats; differentiable."""

    def find(self, source: Int[Tensor, "..."], target: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Where pairs of words stand in `log_probs`."""

    def sample(self, source: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Draw a target word for each source word."""


class SparseLexicon:
    r"""A probability for each pair of words that occurs in a corpus; the other words share what is left of a row.

    Args:
        probs: Values of the pairs, and what each source word leaves to all others, shape (values,); every row is
            normalised.
        pairs: Which target words occur beside which source words. The empty word is the last source word.
    """

    def __init__(self, probs: Float[Tensor, " values"], pairs: Cooccurrences) -> None:
        self.pairs = pairs
        self.empty_word = pairs.num_rows - 1
        self.parameters = [probs]
        self._probs = probs
        self._log_probs: Tensor | None = None

    @property
    def log_probs(self) -> Float[Tensor, " values"]:
        """Log-probability of each word of a row, nats."""
        if self._log_probs is None or (torch.is_grad_enabled() and not self._log_probs.requires_grad):
            probs, shares = self._probs, self.pairs.shares.to(self._probs)
            total = self.pairs.sum_rows(probs)[self.pairs.row_of_value]
            positive = probs > 0
            logs = torch.where(positive, torch.where(positive, probs, 1.0).log(), -torch.inf)
            self._log_probs = logs - (total * shares.clamp_min(1)).log()
        return self._log_probs

    def find(self, source: Int[Tensor, "..."], target: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Where pairs of words stand in `log_probs`."""
        return self.pairs.find(source, target)

    def sample(self, source: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Draw a target word for each source word."""
        return self.pairs.sample(self._probs.detach(), source)


class DenseLexicon:
    """A law over all target words for each of some source words.

    Args:
        logits: Unnormalised log-probabilities, shape (words, vocabulary).
        words: The source words that have a row, ascending, shape (words,).
        empty_word: The source word that stands for none; it has a row.
    """

    def __init__(
        self, logits: Float[Tensor, "words vocabulary"], words: Int[Tensor, " words"], empty_word: int
    ) -> None:
        self.logits = logits
        self.words = words
        self.empty_word = empty_word
        self.parameters = [logits]
        self._log_probs = logits.log_softmax(-1).reshape(-1)

    @property
    def log_probs(self) -> Float[Tensor, " values"]:
        """Log-probability of each word of a row, one row after the other, nats."""
        return self._log_probs

    def find(self, source: Int[Tensor, "..."], target: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Where pairs of words stand in `log_probs`."""
        return torch.searchsorted(self.words, source.contiguous()) * self.logits.shape[-1] + target

    def sample(self, source: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Draw a target word for each source word."""
        rows = torch.searchsorted(self.words, source.contiguous())
        return torch.distributions.Categorical(logits=self.logits.detach()[rows]).sample()
