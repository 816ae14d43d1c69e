"""Word alignment models whose lexicon is a table over the pairs of words that meet."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.aligned_sentence import Counts
from pyro_lvm.distributions.independent_alignment import IndependentAlignment
from pyro_lvm.distributions.lexicon import SparseLexicon
from pyro_lvm.models.word_alignment import WordAlignment
from pyro_lvm.ops.cooccurrences import Cooccurrences
from pyro_lvm.ops.sentence_pairs import Group, Memory, lay_out, number_pairs
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["TranslationTable"]


class TranslationTable(WordAlignment):
    """Base of the models whose lexicon is a table: a probability for each pair of words that stand in a pair together.

    Args:
        num_source_words: Size of the source vocabulary; taken from the data if None.
        num_target_words: Size of the target vocabulary; taken from the data if None.
        smoothing: Pseudo-count of every pair of words, >= 0: a Dirichlet prior of concentration 1 + `smoothing` on
            each row of the table, whose mode EM finds. It keeps rare words from attracting what
            is hard to align.
        num_warm_up: Steps of EM for Model 1 that find the table to start from.

    References:
        R. Moore (2004), Improving IBM word-alignment Model 1, ACL (why rows are smoothed).
    """

    dims: ClassVar[dict[str, list[str]]] = {"translation_probs": ["pair"]}

    def __init__(
        self,
        num_source_words: int | None = None,
        num_target_words: int | None = None,
        smoothing: float = 0.0,
        num_warm_up: int = 0,
    ) -> None:
        super().__init__(num_source_words, num_target_words)
        self.smoothing = self._pseudo_count("smoothing", smoothing)
        self._meetings = Memory()
        self.num_warm_up = whole_number(self._name, "num_warm_up", num_warm_up, least=0)
        if num_source_words is not None and num_target_words is not None:
            self._declare_table(torch.zeros(0, dtype=torch.long))

    def _start(self, x: Tensor, source: Tensor, source_lengths: Tensor, lengths: Tensor) -> None:
        """The uniform table, or what Model 1 makes of it in `num_warm_up` steps."""
        vocabulary = self.num_target_words or 0
        tensors = x, source, source_lengths, lengths

        def meetings() -> tuple[Tensor, list[Group]]:
            empty = self.num_source_words or 0
            return number_pairs(
                lay_out(source, source_lengths, x.long(), lengths, empty, lambda f, e: f * vocabulary + e)
            )

        keys, groups = self._meetings.get(tensors, meetings)
        self._memory.put(tensors, groups)
        self._declare_table(keys)
        table = self.translation_probs.detach()
        for _ in range(self.num_warm_up):
            law = IndependentAlignment(self._as_lexicon(table), *tensors[1:], x.shape[1], memory=self._memory)
            table = self._table(law.expected_counts(x, torch.ones_like(table[:1])))
        self.declare("translation_probs", table, constraints.nonnegative)
        self._arrange(source_lengths, lengths)

    def _arrange(self, source_lengths: Tensor, lengths: Tensor) -> None:
        """Declare what else the model has for sentences of these lengths."""

    def _declare_table(self, keys: Tensor) -> None:
        rows, columns = (self.num_source_words or 0) + 1, self.num_target_words or 0
        self.pairs = Cooccurrences(keys, rows, columns)
        start = self.pairs.shares.to(torch.get_default_dtype()) / columns
        self.declare("translation_probs", start, constraints.nonnegative)

    def _lexicon(self, source: Tensor) -> Any:
        return self._as_lexicon(self.translation_probs)

    def _as_lexicon(self, table: Tensor) -> Any:
        return SparseLexicon(table, self.pairs)

    def _maximisers(self) -> dict[str, Any]:
        return {"m_step": self._maximise, "log_prior": self._log_prior}

    def _maximise(self, law: Any, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The M-step, from sentences and how often each counts."""
        return self._solve(law.expected_counts(x, weights))

    def _solve(self, counts: Counts) -> dict[str, Tensor]:
        return {"translation_probs": self._table(counts)}

    def _table(self, counts: Counts) -> Float[Tensor, " values"]:
        return self.pairs.normalise(counts.words + self.smoothing * self.pairs.shares.to(counts.words))

    def _log_prior(self) -> Float[Tensor, ""]:
        """Log-density of the parameters, nats, up to a constant."""
        if not self.smoothing:
            return torch.zeros(())
        shares = self.pairs.shares
        logs = self._as_lexicon(self.translation_probs.double()).log_probs
        return self.smoothing * torch.where(shares > 0, shares * logs, 0.0).sum()

    def _pseudo_count(self, name: str, value: Any) -> float:
        if isinstance(value, (bool, str)) or not 0 <= value < torch.inf:
            raise ValueError(f"{self._name}: expected {name} >= 0, a pseudo-count; got {value!r}.")
        return float(value)
