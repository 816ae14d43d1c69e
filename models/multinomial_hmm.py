r"""Hidden Markov model with multinomial emissions: counts that sum to a total.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \mathrm{Multinomial}(m_{nt}, p_k)
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_lvm.distributions.counted_rows import CountedRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["MultinomialHMM"]


class MultinomialHMM(HiddenMarkov):
    r"""Hidden Markov model whose steps are vectors of counts with a total: words of a paragraph, votes of a poll.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`p`             shares of the d kinds                        (K, d)        `probs`
    :math:`m_{nt}`        total of a step                              a number      `total_count`
    ====================  ===========================================  ============  ====================

    Totals are given, not modelled. Steps are known or missing (NaN) as a whole.

    Args:
        num_states: K >= 1.
        data_dim: Number of kinds d; taken from the data by `initialize` if None.
        total_count: Total of every step; None lets steps have totals of their own (the density is then that of the
            counts given their total, and generated steps have the largest total of the training data).
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        W. Zucchini, I. MacDonald, R. Langrock (2016), Hidden Markov Models for Time Series, 2nd edition, section 9.2.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("seatbelts").x  # who is hurt, month by month
        >>> model = lvm.models.MultinomialHMM(2, topology="left-to-right")
        >>> fit = lvm.fit(model, x, seed=0, progress=False)
        >>> int((fit.predict(x) == 0).sum())  # months before belts were compulsory
        169
    """

    def __init__(
        self,
        num_states: int,
        data_dim: int | None = None,
        total_count: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        if total_count is not None:
            total_count = whole_number(name, "total_count", total_count)
        super().__init__(num_states, CountedRows(total_count, checked_width(name, data_dim)), topology, priors)
        self._own = {"total_count": total_count}

    def _emission(self, parameters: dict[str, Tensor], known: Tensor | None, covariates: Tensor | None = None) -> Any:
        return dist.Multinomial(int(self.prior_total), parameters["probs"], validate_args=False)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, **self._own}
