r"""Neural HMM word alignment: a network gives the translation probabilities of a word from its embedding.

.. math::

    z_{nj} \mid z_{n,j-1} = i' &\sim c(\cdot - i') \\
    e_{nj} \mid z_{nj} = i &\sim \mathrm{softmax}(W \tanh(A\, v_{f_{ni}} + a) + b)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.nn.module import to_pyro_module_
from torch import Tensor

from pyro_lvm.distributions.lexicon import DenseLexicon
from pyro_lvm.models.jumping_alignment import JumpingAlignment
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["NeuralHMMAlignment"]


class NeuralHMMAlignment(JumpingAlignment):
    r"""Word alignment by jumps, and translation probabilities that a network shares among words.

    ===================  =====================================  ====================  ==================
    symbol               meaning                                shape                 code
    ===================  =====================================  ====================  ==================
    :math:`v, A, a,`     embeddings of source words, a layer,   (V + 1, d), (h, d),   `network`
    :math:`W, b`         target words; word V is the empty one  (h,), (V', h), (V',)
    :math:`c(d)`         scores of jumps, as in `HMMAlignment`  (2 W + 1,)            `jump_probs`
    :math:`p(i|I)`       scores of the first position           (W + 1,)              `initial_probs`
    :math:`p_0`          probability of the empty word          ()                    `null_probability`
    ===================  =====================================  ====================  ==================

    Alignments are summed out exactly, so that all is trained by gradients of the likelihood itself: with
    `inference="svi"` on batches, or with EM's gradient steps. Time and memory of a step go with the source words of the
    batch times the target vocabulary.

    Args:
        num_source_words: Size V of the source vocabulary; taken from the data if None.
        num_target_words: Size V' of the target vocabulary; taken from the data if None.
        embedding_dim: d >= 1.
        hidden_dim: h >= 1.
        max_jump: W >= 1.
        null_probability: p_0, in [0, 1); kept as it is.

    Raises:
        ValueError: An argument is out of range.

    References:
        S. Vogel, H. Ney, C. Tillmann (1996), HMM-based word alignment in statistical translation, COLING.
        W. Wang, D. Zhu, T. Alkhouli, Z. Gan, H. Ney (2018), Neural hidden Markov model for machine translation, ACL
            (a network as lexicon inside the chain; theirs also sees the target words before).

    Example:
        >>> import pyro_lvm as lvm
        >>> corpus = lvm.datasets.phrases()
        >>> model = lvm.models.NeuralHMMAlignment(embedding_dim=8, hidden_dim=8)
        >>> svi = lvm.infer.SVI(learning_rate=0.02)
        >>> fit = lvm.fit(model, corpus, inference=svi, batch_size=16, max_epochs=5, seed=0, progress=False)
        >>> fit.history["loss"][-1] < fit.history["loss"][0]
        True
    """

    network: torch.nn.Module
    dims: ClassVar[dict[str, list[str]]] = {"initial_probs": ["first_position"], "jump_probs": ["jump"]}

    def __init__(
        self,
        num_source_words: int | None = None,
        num_target_words: int | None = None,
        embedding_dim: int = 64,
        hidden_dim: int = 64,
        max_jump: int = 10,
        null_probability: float = 0.2,
    ) -> None:
        super().__init__(num_source_words, num_target_words)
        self.embedding_dim = whole_number("NeuralHMMAlignment", "embedding_dim", embedding_dim)
        self.hidden_dim = whole_number("NeuralHMMAlignment", "hidden_dim", hidden_dim)
        self._take_jumps(max_jump, null_probability)
        if self.num_source_words is not None and self.num_target_words is not None:
            self._declare(torch.ones(self.num_target_words))

    def _start(self, x: Tensor, source: Tensor, source_lengths: Tensor, lengths: Tensor) -> None:
        """Random weights; every source word is translated by how frequent target words are."""
        inside = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        counts = torch.bincount(x[inside].long(), minlength=self.num_target_words or 0)
        self._declare(counts.to(torch.get_default_dtype()) + 1)

    def _declare(self, frequencies: Tensor) -> None:
        """New weights, their start fitting how frequent target words are."""
        words, targets = (self.num_source_words or 0) + 1, len(frequencies)
        readout = torch.nn.Linear(self.hidden_dim, targets)
        readout.bias.data.copy_((frequencies / frequencies.sum()).log())
        network = torch.nn.Sequential(
            torch.nn.Embedding(words, self.embedding_dim),
            torch.nn.Linear(self.embedding_dim, self.hidden_dim),
            torch.nn.Tanh(),
            readout,
        )
        to_pyro_module_(network)  # its weights then are parameters of the program
        self.network = network.to(frequencies)
        self._declare_jumps(frequencies)

    def _lexicon(self, source: Tensor) -> Any:
        empty = self.num_source_words or 0
        words = torch.cat([source.reshape(-1), source.new_full((1,), empty)]).unique()
        return DenseLexicon(self.network(words), words, empty)
