r"""Hidden Markov model with Student's t emissions, robust to outliers.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \mathrm{StudentT}(\nu_k, \mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any

from pyro_lvm.distributions.student_t_rows import StudentTRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology

__all__ = ["StudentTHMM"]


class StudentTHMM(HiddenMarkov):
    r"""Hidden Markov model whose steps are Student's t given the state: a wild step neither moves nor makes a state.

    ==================  =========================================  ===========================  ====================
    symbol              meaning                                    shape                        code
    ==================  =========================================  ===========================  ====================
    :math:`\pi`         law of the first state                     (K,)                         `initial_probs`
    :math:`A`           law of the next state, row by previous     (K, K)                       `transition_probs`
    :math:`\mu`         centres                                    (K, d)                       `loc`
    :math:`\Sigma`      scale matrices                             full (K, d, d); diag (K, d)  `scale`
    :math:`\nu`         degrees of freedom                         (K,)                         `degrees_of_freedom`
    ==================  =========================================  ===========================  ====================

    The emissions are the components of `StudentTMixture`: the scale, squared, is in the units of a variance. Steps
    are known or missing (NaN) as a whole.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full" or "diag".
        degrees_of_freedom: A number > 0 for all states, or None to learn one for each.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        S. Chatzis, D. Kosmopoulos, T. Varvarigou (2009), Robust sequential data modeling using an outlier tolerant
            hidden Markov model, IEEE Transactions on Pattern Analysis and Machine Intelligence 31(9).

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> fit = lvm.fit(lvm.models.StudentTHMM(2), x, seed=0, max_epochs=20, progress=False)
        >>> fit.params["degrees_of_freedom"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_states: int,
        data_dim: int | None = None,
        covariance: str = "full",
        degrees_of_freedom: float | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        rows = StudentTRows(name, covariance, degrees_of_freedom, checked_width(name, data_dim))
        super().__init__(num_states, rows, topology, priors)
        self._own = {"covariance": covariance, "degrees_of_freedom": degrees_of_freedom}

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, **self._own}
