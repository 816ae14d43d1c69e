r"""IBM Model 1: every target word translates a source word chosen blindly.

.. math::

    z_{nj} &\sim \mathrm{Uniform}\{0, \dots, I_n\} \\
    e_{nj} \mid z_{nj} = i &\sim t(\cdot \mid f_{ni})
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_lvm.distributions.independent_alignment import IndependentAlignment
from pyro_lvm.models.translation_table import TranslationTable

__all__ = ["IBMModel1"]


class IBMModel1(TranslationTable):
    r"""Word alignment by translation probabilities alone; its likelihood has no local maxima.

    =================  ==========================================  =================  =====================
    symbol             meaning                                     shape              code
    =================  ==========================================  =================  =====================
    :math:`t(e|f)`     translation probabilities: one for each     (P + V + 1,)       `translation_probs`
                       pair of words that meet, in the order of
                       `pairs.keys`; then, for each source word,
                       what is left for all others
    :math:`f_n`        source sentence; word V is the empty one    (n, I)             argument `source`
    :math:`e_n`        target sentence                             (n, J)             site `x`
    :math:`z_n`        alignment, 0 for the empty word             (n, J)             summed out of `x`
    =================  ==========================================  =================  =====================

    Memory and time go with the pairs of words that meet, not with the vocabularies' product.

    Args:
        num_source_words: Size V of the source vocabulary; taken from the data if None.
        num_target_words: Size of the target vocabulary; taken from the data if None.
        smoothing: Pseudo-count of every pair of words, >= 0.

    Raises:
        ValueError: An argument is out of range.

    References:
        P. Brown, S. Della Pietra, V. Della Pietra, R. Mercer (1993), The mathematics of statistical machine
            translation, Computational Linguistics 19(2), equations 17 to 20.

    Example:
        >>> import pyro_lvm as lvm
        >>> corpus = lvm.datasets.parallel_corpus([("the house", "la casa"), ("the book", "el libro"),
        ...                                        ("a house", "una casa")])
        >>> fit = lvm.fit(lvm.models.IBMModel1(), corpus, progress=False)
        >>> sorted(fit.model.align(**corpus)[0])
        [(0, 0), (1, 1)]
    """

    def __init__(
        self, num_source_words: int | None = None, num_target_words: int | None = None, smoothing: float = 0.0
    ) -> None:
        super().__init__(num_source_words, num_target_words, smoothing)

    def law(self, source: Tensor, source_lengths: Tensor, lengths: Tensor, num_steps: int) -> Any:
        """The law of target sentences, alignments summed out."""
        lexicon = self._lexicon(source)
        return IndependentAlignment(lexicon, source, source_lengths, lengths, num_steps, memory=self._memory)
