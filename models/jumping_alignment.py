r"""What word alignment models share whose links jump from each source word to the next, as a Markov chain.

.. math:: z_{nj} \mid z_{n,j-1} = i' \sim c(\cdot - i')
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.markov_alignment import MarkovAlignment
from pyro_lvm.models.word_alignment import WordAlignment
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["JumpingAlignment"]


class JumpingAlignment(WordAlignment):
    """Base: scores of jumps and of the first position; the lexicon is the subclass's.

    Attributes:
        max_jump: Jumps of at least that many words share a score.
        null_probability: Probability of the empty word, in [0, 1).
    """

    max_jump: int
    null_probability: float

    def law(self, source: Tensor, source_lengths: Tensor, lengths: Tensor, num_steps: int) -> Any:
        """The law of target sentences, alignments summed out."""
        sentences = source, source_lengths, lengths, num_steps
        scores = self.initial_probs, self.jump_probs, self.null_probability
        return MarkovAlignment(self._lexicon(source), *sentences, *scores, self._memory)

    def _take_jumps(self, max_jump: int, null_probability: float) -> None:
        """Keep arguments of the constructor.

        Raises:
            ValueError: One is out of range.
        """
        self.max_jump = whole_number(self._name, "max_jump", max_jump)
        if isinstance(null_probability, (bool, str)) or not 0 <= null_probability < 1:
            raise ValueError(f"{self._name}: expected null_probability in [0, 1); got {null_probability!r}.")
        self.null_probability = float(null_probability)

    def _declare_jumps(self, like: Tensor) -> None:
        """Scores that are all equal."""
        for name, size in (("initial_probs", self.max_jump + 1), ("jump_probs", 2 * self.max_jump + 1)):
            self.declare(name, torch.full((size,), 1 / size).to(like), constraints.simplex)
