r"""Hidden Markov regression: the steps of a series follow one of K regressions on covariates, which one changes.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \mathrm{Normal}(B_k u_{nt} + b_k, \mathrm{diag}(s_k^2))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_lvm.distributions.regressed_rows import RegressedRows
from pyro_lvm.models.conditional_hidden_markov import ConditionalHiddenMarkov
from pyro_lvm.models.hidden_markov import Priors, checked_width
from pyro_lvm.ops.topology import Topology

__all__ = ["RegressionHMM"]


class RegressionHMM(ConditionalHiddenMarkov):
    r"""Hidden Markov model whose steps are linear regressions on covariates; maximises the likelihood of x given u.

    ====================  ===========================================  ============  ====================
    symbol                meaning                                      shape         code
    ====================  ===========================================  ============  ====================
    :math:`\pi`           law of the first state                       (K,)          `initial_probs`
    :math:`A`             law of the next state, row by previous one   (K, K)        `transition_probs`
    :math:`B`             slopes                                       (K, d, q)     `coefficients`
    :math:`b`             intercepts                                   (K, d)        `intercept`
    :math:`s`             residual scales                              (K, d)        `scale`
    :math:`u_{nt}`        covariates of a step                         (n, T, q)     argument `covariates`
    ====================  ===========================================  ============  ====================

    Entries of x may be missing (NaN), covariates may not. Under EM the regressions are weighted least squares.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        covariate_dim: Number of covariates q; likewise.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Raises:
        ValueError: An argument is out of range.

    References:
        M. Fridman (1994), Hidden Markov model regression, IMA preprint 1195.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("geyser").x
        >>> data = {"x": x[None, :, 1:], "covariates": x[None, :, :1]}  # durations on waiting times
        >>> fit = lvm.fit(lvm.models.RegressionHMM(2), data, seed=0, max_epochs=20, progress=False)
        >>> fit.params["coefficients"].shape
        torch.Size([2, 1, 1])
    """

    def __init__(
        self,
        num_states: int,
        data_dim: int | None = None,
        covariate_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        rows = RegressedRows(checked_width(self._name, data_dim), covariate_dim)
        super().__init__(num_states, rows, covariate_dim, topology, priors)
        self._regressed = rows

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim}

    def _initialize(
        self, x: Tensor, lengths: Tensor | None, sample_weights: Tensor | None, covariates: Tensor | None = None
    ) -> None:
        self._regressed.covariate_dim = self.covariate_dim
        super()._initialize(x, lengths, sample_weights, covariates)
