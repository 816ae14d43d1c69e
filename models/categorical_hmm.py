r"""Hidden Markov model with categorical emissions: the classic one over symbols.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{ntj} \mid z_{nt} = k \sim \mathrm{Categorical}(p_{kj})
"""

from __future__ import annotations

from typing import Any

from pyro_lvm.distributions.rows import Answers
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["CategoricalHMM"]


class CategoricalHMM(HiddenMarkov):
    r"""Hidden Markov model over symbols 0 to C - 1, one of them a step or d of them, independent given the state.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`p`             probabilities of the symbols                 (K, d, C)     `probs`
    ====================  ===========================================  ============  ====================

    With priors, by default all Dirichlet(1), the parameters are sample sites. Missing symbols are NaN and are
    marginalised.

    Args:
        num_states: K >= 1.
        num_categories: Number of symbols C; one more than the largest in the data if None (give it if a symbol may
            occur that the training data lack).
        data_dim: Number of symbols a step, d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Baum, T. Petrie, G. Soules, N. Weiss (1970), A maximization technique occurring in the statistical analysis
            of probabilistic functions of Markov chains, Annals of Mathematical Statistics 41.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("eruptions").x
        >>> fit = lvm.fit(lvm.models.CategoricalHMM(2), x, seed=0, max_epochs=20, progress=False)
        >>> fit.params["probs"].shape
        torch.Size([2, 1, 2])
    """

    def __init__(
        self,
        num_states: int,
        num_categories: int | None = None,
        data_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        if num_categories is not None:
            num_categories = whole_number(name, "num_categories", num_categories)
            data_dim = 1 if data_dim is None else data_dim
        self._answers = Answers(num_categories, checked_width(name, data_dim))
        super().__init__(num_states, self._answers, topology, priors)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, "num_categories": self._answers.num_categories}
