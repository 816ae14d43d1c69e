r"""HMM word alignment: the translated source word moves on in jumps.

.. math::

    z_{n1} &\sim p(\cdot \mid I_n) \\
    z_{nj} \mid z_{n,j-1} = i' &\sim c(\cdot - i') \\
    e_{nj} \mid z_{nj} = i &\sim t(\cdot \mid f_{ni})
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.distributions.aligned_sentence import Counts
from pyro_lvm.distributions.markov_alignment import bins_of_first, bins_of_jumps
from pyro_lvm.models.jumping_alignment import JumpingAlignment
from pyro_lvm.models.translation_table import TranslationTable
from pyro_lvm.ops.choices import fit_choice_scores

__all__ = ["HMMAlignment"]


class HMMAlignment(JumpingAlignment, TranslationTable):
    r"""Word alignment by translation probabilities and jumps from one translated word to the next.

    ==================  ==========================================  ===============  =======================
    symbol              meaning                                     shape            code
    ==================  ==========================================  ===============  =======================
    :math:`t(e|f)`      translation probabilities, as in            (P + V + 1,)     `translation_probs`
                        `IBMModel1`
    :math:`c(d)`        scores of jumps -W to W, the outermost for  (2 W + 1,)       `jump_probs`
                        all wider ones; they sum to one, and are
                        normalised over each source sentence
    :math:`p(i|I)`      scores of the first position, likewise      (W + 1,)         `initial_probs`
    :math:`p_0`         probability of the empty word; the chain    ()               `null_probability`
                        then remembers the position before it
    ==================  ==========================================  ===============  =======================

    Scores that are normalised over varying subsets have no closed-form M-step: an MM algorithm finds it. (Vogel et al.
    normalise expected counts instead, which is not the maximum, and may lower the likelihood.)

    Args:
        num_source_words: Size V of the source vocabulary; taken from the data if None.
        num_target_words: Size of the target vocabulary; taken from the data if None.
        max_jump: W >= 1.
        null_probability: p_0, in [0, 1); kept as it is, as in Och and Ney.
        smoothing: Pseudo-count of every pair of words, >= 0.
        jump_smoothing: Pseudo-count of every jump and of every first position, >= 0.
        num_warm_up: Steps of EM for Model 1 that find the translation probabilities to start from.

    Raises:
        ValueError: An argument is out of range.

    References:
        S. Vogel, H. Ney, C. Tillmann (1996), HMM-based word alignment in statistical translation, COLING.
        F. Och, H. Ney (2003), A systematic comparison of various statistical alignment models, Computational
            Linguistics 29(1), section 2.1.2.

    Example:
        >>> import pyro_lvm as lvm
        >>> corpus = lvm.datasets.phrases()
        >>> fit = lvm.fit(lvm.models.HMMAlignment(), corpus, max_epochs=10, progress=False)
        >>> links = fit.model.align(**corpus)
        >>> lvm.diagnostics.alignment_error_rate(links, corpus.links) < 0.3
        True
    """

    dims: ClassVar[dict[str, list[str]]] = {
        **TranslationTable.dims,
        "initial_probs": ["first_position"],
        "jump_probs": ["jump"],
    }

    def __init__(
        self,
        num_source_words: int | None = None,
        num_target_words: int | None = None,
        max_jump: int = 10,
        null_probability: float = 0.2,
        smoothing: float = 0.0,
        jump_smoothing: float = 0.0,
        num_warm_up: int = 5,
    ) -> None:
        super().__init__(num_source_words, num_target_words, smoothing, num_warm_up)
        self._take_jumps(max_jump, null_probability)
        self.jump_smoothing = self._pseudo_count("jump_smoothing", jump_smoothing)
        self._declare_jumps(torch.ones(1))

    def _arrange(self, source_lengths: Tensor, lengths: Tensor) -> None:
        self._declare_jumps(self.translation_probs.detach())

    def _solve(self, counts: Counts) -> dict[str, Tensor]:
        return {
            **super()._solve(counts),
            "initial_probs": self._scores(self.initial_probs.detach(), counts.first, bins_of_first),
            "jump_probs": self._scores(self.jump_probs.detach(), counts.moves, bins_of_jumps),
        }

    def _scores(
        self, old: Tensor, found: list[tuple[int, Tensor]], bins: Callable[[int, int], Int[Tensor, "..."]]
    ) -> Float[Tensor, " k"]:
        """Scores that maximise the expected log-probability of positions chosen within source sentences."""
        chosen = torch.full_like(old, self.jump_smoothing, dtype=torch.float64)
        # the prior is on scores that sum to one: as if that often all had been offered
        offers, times = [torch.ones_like(chosen)], [chosen.sum()]
        for size in sorted({size for size, _ in found}):
            totals = [part.double() for other, part in found if other == size]
            table = torch.stack(totals).sum(0).reshape(-1, size)
            scores = bins(size, len(old)).to(old.device).reshape(-1, size)
            chosen.index_add_(0, scores.reshape(-1), table.reshape(-1))
            offers += list(torch.nn.functional.one_hot(scores, len(old)).sum(1).double())
            times += list(table.sum(-1))
        return fit_choice_scores(chosen, torch.stack(offers), torch.stack(times), old)

    def _log_prior(self) -> Float[Tensor, ""]:
        if not self.jump_smoothing:
            return super()._log_prior()
        scores = [self.initial_probs.double(), self.jump_probs.double()]
        return super()._log_prior() + self.jump_smoothing * sum((s / s.sum()).log().sum() for s in scores)
