r"""Hidden Markov regression: the steps of a series follow one of K regressions on covariates, which one changes.

.. math::

    z_{n1} \sim \mathrm{Categorical}(\pi), \quad z_{nt} \sim \mathrm{Categorical}(A_{z_{n,t-1}}), \quad
    x_{nt} \mid z_{nt} = k \sim \mathrm{Normal}(B_k u_{nt} + b_k, \mathrm{diag}(s_k^2))
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int, Num
from torch import Tensor

from pyro_lvm.distributions.regressed_rows import RegressedRows
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.steps import checked_covariates
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["RegressionHMM"]


class RegressionHMM(HiddenMarkov):
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
        name = type(self).__name__
        if covariate_dim is not None:
            covariate_dim = whole_number(name, "covariate_dim", covariate_dim)
        rows = RegressedRows(checked_width(name, data_dim), covariate_dim)
        super().__init__(num_states, rows, topology, priors)
        self._regressed = rows

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim, "covariate_dim": self._regressed.covariate_dim}

    def forward(
        self,
        x: Float[Tensor, "n t d"] | None = None,
        lengths: Int[Tensor, " n"] | None = None,
        covariates: Num[Tensor, "..."] | None = None,
        *,
        size: int | None = None,
        num_steps: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        """Run the program.

        Args:
            x: Observed sequences, shape (n, T, d), NaN where missing; None to generate one for each of the covariates'.
            lengths: Number of steps of every sequence, shape (n,); T by default.
            covariates: What the steps are explained by, shape (n, T, q).
            size: n; need not be given.
            num_steps: T; need not be given.
            sample_weights: How often each sequence counts, shape (n,), >= 0; once by default.

        Returns:
            Sequences, shape (n, T, d).

        Raises:
            ValueError: The covariates are missing, or of another shape than (n, T, q).
        """
        covariates = self._checked(covariates, (size, num_steps) if x is None else x.shape[:2]).to(self.intercept)
        rows, steps, _ = covariates.shape
        return self._run(x, lengths, rows, steps, sample_weights, covariates)

    def initialize(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        sample_weights: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> None:
        """Start from a regression in each k-means cluster of steps; other seeds give other starts.

        Args:
            x: Sequences, shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,).
            sample_weights: How often each sequence counts, shape (n,).
            covariates: Shape (n, T, q).

        Raises:
            ValueError: Too few steps, or covariates, lengths or weights that do not fit them.
        """
        self.check(x)
        covariates = self._checked(covariates, x.shape[:2]).to(x)
        self._regressed.covariate_dim = covariates.shape[-1]
        self._initialize(x, lengths, sample_weights, covariates)

    def check_covariates(self, rows: int, lengths: Any = None, covariates: Any = None, **others: Any) -> None:
        """Raise a ValueError unless there is a row of covariates for each step."""
        super().check_covariates(rows, lengths, **others)
        self._checked(covariates, (rows, None))

    def _checked(self, covariates: Any, rows: Any) -> Tensor:
        """Covariates of the right shape."""
        return checked_covariates("RegressionHMM", covariates, rows, self._regressed.covariate_dim)
