r"""What word alignment models share: every target word translates a source word, or the empty word.

.. math::

    z_{1:J} &\sim p(z_{1:J} \mid I, J) \\
    e_j \mid z_j &\sim t(\cdot \mid f_{z_j})
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pyro
import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.ops.sentence_pairs import Memory
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["WordAlignment"]

Words = Num[Tensor, "..."]


class WordAlignment(LatentVariableModel):
    """Base: sentence pairs as words and lengths, their checks, the plate, alignments of given pairs.

    Sentences are padded to a matrix, with any words; words are whole numbers from 0.
    `lvm.datasets.parallel_corpus` makes such matrices from text.

    Args:
        num_source_words: Size of the source vocabulary; taken from the data if None.
        num_target_words: Size of the target vocabulary; taken from the data if None.
    """

    def __init__(self, num_source_words: int | None = None, num_target_words: int | None = None) -> None:
        super().__init__()
        self.num_source_words = self._size("num_source_words", num_source_words)
        self.num_target_words = self._size("num_target_words", num_target_words)
        self._memory = Memory()

    @abstractmethod
    def law(self, source: Tensor, source_lengths: Tensor, lengths: Tensor, num_steps: int) -> Any:
        """The law of target sentences, alignments summed out.

        Args:
            source: Source words, shape (n, I_max).
            source_lengths: Number of source words, shape (n,).
            lengths: Number of target words, shape (n,).
            num_steps: Width of the padded target sentences.
        """

    @abstractmethod
    def _lexicon(self, source: Tensor) -> Any:
        """The law of target words given source words, those of `source` at least."""

    @abstractmethod
    def _start(self, x: Tensor, source: Tensor, source_lengths: Tensor, lengths: Tensor) -> None:
        """Declare the parameters at a start; the sizes of the vocabularies are known."""

    def _maximisers(self) -> dict[str, Any]:
        """What the site tells EM about closed forms."""
        return {}

    def forward(
        self,
        x: Words | None = None,
        source: Words | None = None,
        lengths: Words | None = None,
        source_lengths: Words | None = None,
        *,
        size: int | None = None,
    ) -> Num[Tensor, "..."]:
        """Run the program.

        Args:
            x: Target words, shape (n, J_max); None to generate.
            source: Source words, shape (n, I_max).
            lengths: Number of target words, shape (n,); by default all are J_max. Needed to generate.
            source_lengths: Number of source words, shape (n,); by default all are I_max.
            size: n; need not be given.

        Returns:
            Target words, shape (n, J_max).

        Raises:
            ValueError: There is nothing to translate, or no lengths of what to generate.
        """
        source, source_lengths = self._sources(source, source_lengths)
        if x is None and lengths is None:
            raise ValueError(f"{self._name}: expected lengths of the sentences to generate, shape (n,); got none.")
        steps = int(lengths.max()) if x is None else x.shape[1]  # type: ignore[union-attr]
        counts = torch.full_like(source_lengths, steps) if lengths is None else lengths.long()
        law = self.law(source, source_lengths, counts, steps)
        with pyro.plate("data", len(source)):
            return pyro.sample("x", law, obs=x, infer=self._maximisers())

    def align(
        self,
        x: Words,
        source: Words,
        lengths: Words | None = None,
        source_lengths: Words | None = None,
        *,
        threshold: float | None = None,
    ) -> list[set[tuple[int, int]]]:
        """Links between source and target words, each (source position, target position) from 0.

        Args:
            x: Target words, shape (n, J).
            source: Source words, shape (n, I).
            lengths: Number of target words, shape (n,).
            source_lengths: Number of source words, shape (n,).
            threshold: None for the most probable alignment; else all links of at least this posterior probability.

        Returns:
            One set for each sentence pair; target words that translate no word have no link.
        """
        law = self._checked_law(x, source, lengths, source_lengths)
        links: list[set[tuple[int, int]]] = [set() for _ in range(len(x))]
        if threshold is None:
            path = law.most_probable(x)
            found = [*(path > 0).nonzero().unbind(1), path[path > 0] - 1]
        else:
            pairs, targets, sources = (law.posterior(x)[..., 1:] >= threshold).nonzero().unbind(1)
            found = [pairs, targets, sources]
        for pair, target, i in zip(*(part.tolist() for part in found), strict=True):
            links[pair].add((i, target))
        return links

    def posterior(
        self, x: Words, source: Words, lengths: Words | None = None, source_lengths: Words | None = None
    ) -> Float[Tensor, "n targets sources"]:
        """Posterior of the source position of every target word, shape (n, J, 1 + I), the empty word first.

        Args:
            x: Target words, shape (n, J).
            source: Source words, shape (n, I).
            lengths: Number of target words, shape (n,).
            source_lengths: Number of source words, shape (n,).
        """
        return self._checked_law(x, source, lengths, source_lengths).posterior(x)

    def translation(self, source: Words, target: Words) -> Float[Tensor, "..."]:
        """Probability t(e | f) of target words given source words, broadcast against each other.

        Args:
            source: Source words; `num_source_words` is the empty word.
            target: Target words.
        """
        source, target = torch.broadcast_tensors(source.long(), target.long())
        with torch.no_grad():
            lexicon = self._lexicon(source)
            return lexicon.log_probs[lexicon.find(source, target)].exp()

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` holds known target words, a row for each sentence."""
        self._check_words("x", x, self.num_target_words)

    def check_covariates(
        self, rows: int, source: Any = None, lengths: Any = None, source_lengths: Any = None, **others: Any
    ) -> None:
        """Raise a ValueError unless there is a sentence of known source words for each row, and none is empty."""
        if source is None or len(source) != rows:
            got = "none" if source is None else f"shape {tuple(source.shape)}"
            raise ValueError(
                f"{self._name}: expected source sentences of shape ({rows}, I), one for each row of x; got {got}. "
                "Pass a corpus, or a dict of x, source, lengths and source_lengths."
            )
        self._check_words("source", source, self.num_source_words)
        self._check_lengths("lengths", lengths, rows, None)
        self._check_lengths("source_lengths", source_lengths, rows, source.shape[1])

    def initialize(
        self, x: Words, source: Words | None = None, lengths: Words | None = None, source_lengths: Words | None = None
    ) -> None:
        """Learn the vocabularies' sizes from sentences, and start the parameters.

        Args:
            x: Target words, shape (n, J).
            source: Source words, shape (n, I).
            lengths: Number of target words, shape (n,).
            source_lengths: Number of source words, shape (n,).

        Raises:
            ValueError: The sentences do not fit each other, or the vocabularies.
        """
        self.check_training(x)
        words, sizes, steps = self._checked(x, source, lengths, source_lengths)
        self.num_source_words = self.num_source_words or int(words.max()) + 1
        self.num_target_words = self.num_target_words or int(x.max()) + 1
        self._start(x, words, sizes, steps)

    def _checked(
        self, x: Tensor, source: Tensor | None, lengths: Tensor | None, source_lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Source words and both lengths as whole numbers, after checks."""
        self.check(x)
        self.check_covariates(len(x), source, lengths, source_lengths)
        self._check_lengths("lengths", lengths, len(x), x.shape[1])
        source, source_lengths = self._sources(source, source_lengths)
        lengths = torch.full_like(source_lengths, x.shape[1]) if lengths is None else lengths.long()
        return source, source_lengths, lengths

    def _checked_law(self, x: Tensor, source: Tensor, lengths: Tensor | None, source_lengths: Tensor | None) -> Any:
        return self.law(*self._checked(x, source, lengths, source_lengths), x.shape[1])

    def _sources(self, source: Tensor | None, source_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Source words and lengths as whole numbers; the very tensors if they are."""
        if source is None:
            raise ValueError(
                f"{self._name}: expected source sentences, shape (n, I); got none. "
                "Pass a corpus, or a dict of x, source, lengths and source_lengths."
            )
        if source_lengths is None:
            source_lengths = torch.full((len(source),), source.shape[1], device=source.device)
        return source.long(), source_lengths.long()

    def _check_words(self, name: str, words: Tensor, vocabulary: int | None) -> None:
        if words.dim() != 2:
            raise ValueError(
                f"{self._name}: expected {name} of shape (n, words), a padded row for each sentence; "
                f"got {tuple(words.shape)}."
            )
        limit = torch.inf if vocabulary is None else vocabulary
        wrong = (words < 0) | (words >= limit) | (words != words.round())
        if bool(wrong.any()):
            sentence, place = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{self._name}: expected {name} to hold words, whole numbers from 0 to "
                f"{'V - 1' if vocabulary is None else vocabulary - 1}; got {words[sentence, place].item():g} in "
                f"sentence {sentence}, place {place}. Encode sentences by the vocabulary that the model was trained "
                "on, or pass its size to the model if not all of its words are in the training data."
            )

    def _check_lengths(self, name: str, lengths: Any, rows: int, width: int | None) -> None:
        if lengths is None:
            return
        limit = torch.inf if width is None else width
        if lengths.shape != (rows,) or bool(((lengths < 1) | (lengths > limit)).any()):
            got = f"shape {tuple(lengths.shape)}"
            if lengths.shape == (rows,):
                wrong = ((lengths < 1) | (lengths > limit)).nonzero()[0].item()
                got = f"{lengths[int(wrong)].item():g} for sentence {wrong}"
            raise ValueError(
                f"{self._name}: expected {name} of shape ({rows},), from 1 to {'J' if width is None else width} words; "
                f"got {got}. Leave empty sentences out."
            )

    def _size(self, name: str, value: Any) -> int | None:
        return None if value is None else whole_number(self._name, name, value)

    @property
    def _name(self) -> str:
        return type(self).__name__
