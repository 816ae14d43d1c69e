r"""Neural hidden Markov model: networks make the tables of a hidden Markov model over symbols.

.. math::

    p(z_t = j \mid z_{t-1} = i) \propto \exp f(e_i, e_j), \qquad
    p(x_t = w \mid z_t = k) \propto \exp(h(e_k) \cdot g(v_w) + c_w)
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.rows import Answers, Kind
from pyro_lvm.models.hidden_markov import HiddenMarkov, checked_width
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["NeuralHMM"]


class NeuralHMM(HiddenMarkov):
    r"""Hidden Markov model over symbols whose tables are made by networks from embeddings of states and symbols.

    States (and symbols) that are near in their embeddings behave alike, and the number of parameters grows with
    :math:`K + C` instead of :math:`K^2 + K C`. The marginal likelihood is exact, under SVI and under EM, which climbs
    by gradient (generalised EM; pass `lvm.infer.EM(optimizer=...)` for Adam in place of L-BFGS) except for the first
    state.

    ====================  ===========================================  ============  ============================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ============================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`e`             embeddings of states                         (K, e)        `transition.states`
    :math:`f`             network of pairs of states                   1             `transition.network`
    :math:`v`             embeddings of symbols                        (d, C, e)     `symbols.words`
    :math:`g, h`          networks of symbols and of states            (e,)          `symbols.word`, `symbols.state`
    :math:`c`             log-frequencies of symbols at the start      (d, C)        `symbols.bias`
    ====================  ===========================================  ============  ============================

    Differs from the paper in that words have an embedding each, in place of a network over their letters, and that the
    law of the first state is a plain table.

    Args:
        num_states: K >= 1.
        num_categories: Number of symbols C; one more than the largest in the data if None.
        embedding_dim: e >= 1.
        hidden_dim: Width of the networks' hidden layers, >= 1.
        data_dim: Number of symbols a step, d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.

    References:
        K. Tran, Y. Bisk, A. Vaswani, D. Marcu, K. Knight (2016), Unsupervised neural hidden Markov models, EMNLP
            workshop on structured prediction for NLP.

    Example:
        >>> import pyro_lvm as lvm
        >>> model = lvm.models.NeuralHMM(2, num_categories=4)
        >>> model(size=3, num_steps=5).shape
        torch.Size([3, 5, 1])
    """

    def __init__(
        self,
        num_states: int,
        num_categories: int | None = None,
        embedding_dim: int = 16,
        hidden_dim: int = 32,
        data_dim: int | None = None,
    ) -> None:
        name = self._name
        if num_categories is not None:
            num_categories = whole_number(name, "num_categories", num_categories)
            data_dim = 1 if data_dim is None else data_dim
        self.embedding_dim = whole_number(name, "embedding_dim", embedding_dim)
        self.hidden_dim = whole_number(name, "hidden_dim", hidden_dim)
        self._answers = Answers(num_categories, checked_width(name, data_dim))
        super().__init__(num_states, self._answers)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "num_states": self.num_states,
            "num_categories": self._answers.num_categories,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "data_dim": self.data_dim,
        }

    @property
    def _kinds(self) -> dict[str, Kind]:
        """Constraint and axes of what is a table."""
        return {"initial_probs": super()._kinds["initial_probs"]}

    def transition_logits(self) -> Float[Tensor, "k k"]:
        """Logits of the next state, row by previous state."""
        return self.transition()

    def emission_logits(self) -> Float[Tensor, "k d c"]:
        """Logits of the symbols in every state."""
        return self.symbols(self.transition.states)

    def _law(self, emission: Any, covariates: Tensor | None, **options: Any) -> HMM:
        return HMM(self.initial_probs, transition_logits=self.transition_logits(), emission=emission, **options)

    def _emission(self, parameters: dict[str, Tensor], known: Tensor | None, covariates: Tensor | None = None) -> Any:
        law = dist.Categorical(logits=self.emission_logits())
        return (law if known is None else law.mask(known)).to_event(1)

    def _declare(
        self, initial: Tensor, transition: Tensor, start: dict[str, Tensor], summary: dict[str, Tensor], steps: int
    ) -> None:
        """Draw the networks anew, and set the symbols' overall frequencies."""
        self.register_buffer("num_steps", torch.tensor(steps))
        self.declare("initial_probs", initial / initial.sum(), self._kinds["initial_probs"].constraint)
        frequency = summary["probs"][0]
        self.transition = _Transition(self.num_states, self.embedding_dim, self.hidden_dim)
        self.symbols = _Symbols(frequency.log(), self.embedding_dim, self.hidden_dim)
        for network in (self.transition, self.symbols):
            network.to(frequency)
            to_pyro_module_(network)


class _Transition(nn.Module):
    """Logits of pairs of states."""

    def __init__(self, num_states: int, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.randn(num_states, embedding_dim))
        self.network = nn.Sequential(nn.Linear(2 * embedding_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 1))

    def forward(self) -> Tensor:
        k = len(self.states)
        before, after = self.states.unsqueeze(1).expand(k, k, -1), self.states.expand(k, k, -1)
        return self.network(torch.cat([before, after], -1)).squeeze(-1)


class _Symbols(nn.Module):
    """Logits of symbols in states of given embeddings."""

    def __init__(self, log_frequency: Tensor, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(*log_frequency.shape, embedding_dim))
        self.bias = nn.Parameter(log_frequency.detach().clone())
        self.word = nn.Sequential(nn.Linear(embedding_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, embedding_dim))
        self.state = nn.Sequential(
            nn.Linear(embedding_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, embedding_dim)
        )

    def forward(self, states: Tensor) -> Tensor:
        return torch.einsum("ke,dce->kdc", self.state(states), self.word(self.words)) + self.bias
