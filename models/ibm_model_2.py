r"""IBM Model 2: which source word a target word translates depends on where it stands.

.. math::

    z_{nj} &\sim a(\cdot \mid j, I_n) \\
    e_{nj} \mid z_{nj} = i &\sim t(\cdot \mid f_{ni})
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.aligned_sentence import Counts
from pyro_lvm.distributions.independent_alignment import IndependentAlignment
from pyro_lvm.models.translation_table import TranslationTable

__all__ = ["IBMModel2"]


class IBMModel2(TranslationTable):
    r"""Word alignment by translation probabilities and positions.

    ====================  ======================================  ==================  =======================
    symbol                meaning                                 shape               code
    ====================  ======================================  ==================  =======================
    :math:`t(e|f)`        translation probabilities, as in        (P + V + 1,)        `translation_probs`
                          `IBMModel1`
    :math:`a(i|j,I)`      probability of source position i        (I, J, 1 + I)       `alignment_probs`
                          given the target position, at
                          [I - 1, j - 1, i]; zero where i > I
    ====================  ======================================  ==================  =======================

    As in Och and Ney, positions do not depend on the length of the target sentence, which Brown et al. let them. Source
    or target positions beyond the longest training sentence are uniform.

    Args:
        num_source_words: Size V of the source vocabulary; taken from the data if None.
        num_target_words: Size of the target vocabulary; taken from the data if None.
        max_source_length: Longest source sentence I; taken from the data if None.
        max_target_length: Longest target sentence J; taken from the data if None.
        smoothing: Pseudo-count of every pair of words, >= 0.
        position_smoothing: Pseudo-count of every source position given each target position, >= 0.
        num_warm_up: Steps of EM for Model 1 that find the translation probabilities to start from.

    Raises:
        ValueError: An argument is out of range.

    References:
        P. Brown, S. Della Pietra, V. Della Pietra, R. Mercer (1993), The mathematics of statistical machine
            translation, Computational Linguistics 19(2), equations 25 to 30.
        F. Och, H. Ney (2003), A systematic comparison of various statistical alignment models, Computational
            Linguistics 29(1), section 2.1.3.

    Example:
        >>> import pyro_lvm as lvm
        >>> corpus = lvm.datasets.phrases()
        >>> fit = lvm.fit(lvm.models.IBMModel2(), corpus, max_epochs=10, progress=False)
        >>> fit.model.alignment_probs.shape == (9, 9, 10)
        True
    """

    dims: ClassVar[dict[str, list[str]]] = {
        **TranslationTable.dims,
        "alignment_probs": ["source_length", "target_position", "source_position"],
    }

    def __init__(
        self,
        num_source_words: int | None = None,
        num_target_words: int | None = None,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        smoothing: float = 0.0,
        position_smoothing: float = 0.0,
        num_warm_up: int = 5,
    ) -> None:
        super().__init__(num_source_words, num_target_words, smoothing, num_warm_up)
        self.position_smoothing = self._pseudo_count("position_smoothing", position_smoothing)
        self.max_source_length = self._size("max_source_length", max_source_length)
        self.max_target_length = self._size("max_target_length", max_target_length)
        if max_source_length is not None and max_target_length is not None:
            self._declare_positions(torch.ones(1))

    def law(self, source: Tensor, source_lengths: Tensor, lengths: Tensor, num_steps: int) -> Any:
        """The law of target sentences, alignments summed out."""
        sentences = source, source_lengths, lengths, num_steps
        return IndependentAlignment(self._lexicon(source), *sentences, self.alignment_probs, self._memory)

    def _arrange(self, source_lengths: Tensor, lengths: Tensor) -> None:
        self.max_source_length = self.max_source_length or int(source_lengths.max())
        self.max_target_length = self.max_target_length or int(lengths.max())
        self._declare_positions(self.translation_probs.detach())

    def _declare_positions(self, like: Tensor) -> None:
        start = self._possible() / (2 + torch.arange(self.max_source_length or 0).reshape(-1, 1, 1))
        self.declare("alignment_probs", start.to(like), constraints.nonnegative)

    def _possible(self) -> Float[Tensor, "lengths targets sources"]:
        """One where a source position is inside of its sentence."""
        longest, targets = self.max_source_length or 0, self.max_target_length or 0
        inside = torch.ones(longest, 1 + longest).tril(1)
        return inside.unsqueeze(1).repeat(1, targets, 1)

    def _solve(self, counts: Counts) -> dict[str, Tensor]:
        old = self.alignment_probs.detach()
        table = self.position_smoothing * self._possible().to(old)
        for size, found in counts.positions:
            if size <= len(table):
                found = found[: table.shape[1]]
                table[size - 1, : len(found), : 1 + size] += found
        total = table.sum(-1, keepdim=True)
        return {**super()._solve(counts), "alignment_probs": torch.where(total > 0, table / total, old)}

    def _log_prior(self) -> Float[Tensor, ""]:
        if not self.position_smoothing:
            return super()._log_prior()
        table, possible = self.alignment_probs.double(), self._possible().to(self.alignment_probs.device) > 0
        shares = torch.where(possible, table / table.sum(-1, keepdim=True), 1.0)
        return super()._log_prior() + self.position_smoothing * shares.log().sum()
