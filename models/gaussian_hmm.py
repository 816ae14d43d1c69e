r"""Hidden Markov model with normal emissions.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \mathrm{Normal}(\mu_k, \Sigma_k)
"""

from __future__ import annotations

from typing import Any

from pyro_lvm.distributions.normal_rows import NormalRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology

__all__ = ["GaussianHMM"]


class GaussianHMM(HiddenMarkov):
    r"""Hidden Markov model whose steps are multivariate normal given the state.

    ==================  =========================================  ===========================  ====================
    symbol              meaning                                    shape                        code
    ==================  =========================================  ===========================  ====================
    :math:`\pi`         law of the first state                     (K,)                         `initial_probs`
    :math:`A`           law of the next state, row by previous     (K, K)                       `transition_probs`
    :math:`\mu`         means                                      (K, d)                       `loc`
    :math:`\Sigma`      (co)variances                              full (K, d, d); tied (d, d)  `covariance`
                                                                   diag (K, d); spherical (K,)
    ==================  =========================================  ===========================  ====================

    The emissions are the components of `GaussianMixture`, and so are their default priors. NaN means missing, whole
    steps or single entries, and is marginalised exactly.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full", "diag", "tied" or "spherical". Variances, not standard deviations.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, section IV.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> fit = lvm.fit(lvm.models.GaussianHMM(2), x, seed=0, max_epochs=20, progress=False)
        >>> fit.predict(x).shape
        torch.Size([299])
    """

    def __init__(
        self,
        num_states: int,
        data_dim: int | None = None,
        covariance: str = "full",
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        rows = NormalRows(name, covariance, checked_width(name, data_dim))
        super().__init__(num_states, rows, topology, priors)
        self.covariance_type = covariance

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, "covariance": self.covariance_type}
