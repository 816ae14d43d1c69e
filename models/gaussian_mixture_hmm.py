r"""Hidden Markov model whose emissions are mixtures of normal laws.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \sum_m w_{km} \mathrm{Normal}(\mu_{km}, \Sigma_{km})
"""

from __future__ import annotations

from typing import Any

from pyro_lvm.distributions.normal_mixture_rows import NormalMixtureRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["GaussianMixtureHMM"]


class GaussianMixtureHMM(HiddenMarkov):
    r"""Hidden Markov model whose steps come, given the state, from one of M normal laws of that state.

    ==================  =========================================  =============================  ====================
    symbol              meaning                                    shape                          code
    ==================  =========================================  =============================  ====================
    :math:`\pi`         law of the first state                     (K,)                           `initial_probs`
    :math:`A`           law of the next state, row by previous     (K, K)                         `transition_probs`
    :math:`w`           mixture weights                            (K, M)                         `weights`
    :math:`\mu`         means                                      (K, M, d)                      `loc`
    :math:`\Sigma`      (co)variances                              full (K, M, d, d);             `covariance`
                                                                   diag (K, M, d); spherical
                                                                   (K, M)
    ==================  =========================================  =============================  ====================

    Which component a step comes from is summed out together with the states. Missing entries are NaN.

    Args:
        num_states: K >= 1.
        num_components: M >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariance: "full", "diag" or "spherical". Variances, not standard deviations.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, equations 49 to 54.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> fit = lvm.fit(lvm.models.GaussianMixtureHMM(2, 2), x, seed=0, max_epochs=20, progress=False)
        >>> fit.params["loc"].shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        num_states: int,
        num_components: int = 2,
        data_dim: int | None = None,
        covariance: str = "full",
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        name = type(self).__name__
        num_components = whole_number(name, "num_components", num_components)
        rows = NormalMixtureRows(name, num_components, covariance, checked_width(name, data_dim))
        super().__init__(num_states, rows, topology, priors)
        self._own = {"num_components": num_components, "covariance": covariance}

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, **self._own}
