"""What hidden Markov models of sequences given covariates share: one row of covariates a step, never missing."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int, Num
from torch import Tensor

from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors
from pyro_lvm.ops.steps import checked_covariates
from pyro_lvm.ops.topology import Topology
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["ConditionalHiddenMarkov"]


class ConditionalHiddenMarkov(HiddenMarkov):
    """Base: covariates and their checks; what depends on them is the subclass's.

    Args:
        num_states: K >= 1.
        emission: As `HiddenMarkov` takes it.
        covariate_dim: Number of covariates q; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.
        data_dim: As `HiddenMarkov` takes it.
    """

    def __init__(
        self,
        num_states: int,
        emission: Any,
        covariate_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
        data_dim: int | None = None,
    ) -> None:
        if covariate_dim is not None:
            covariate_dim = whole_number(self._name, "covariate_dim", covariate_dim)
        self.covariate_dim = covariate_dim
        super().__init__(num_states, emission, topology, priors, data_dim)

    @property
    def _config_of_chain(self) -> dict[str, Any]:
        return {**super()._config_of_chain, "covariate_dim": self.covariate_dim}

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
            covariates: What the law of a step depends on, shape (n, T, q).
            size: n; need not be given.
            num_steps: T; need not be given.
            sample_weights: How often each sequence counts, shape (n,), >= 0; once by default.

        Returns:
            Sequences, shape (n, T, d).

        Raises:
            ValueError: The covariates are missing, or of another shape than (n, T, q).
        """
        covariates = self._checked(covariates, (size, num_steps) if x is None else x.shape[:2]).to(self.first)
        rows, steps, _ = covariates.shape
        return self._run(x, lengths, rows, steps, sample_weights, covariates)

    def initialize(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        sample_weights: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> None:
        """Start from k-means clusters of the steps; other seeds give other starts.

        Args:
            x: Sequences, shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,).
            sample_weights: How often each sequence counts, shape (n,).
            covariates: Shape (n, T, q).

        Raises:
            ValueError: Too few steps, or covariates, lengths or weights that do not fit them.
        """
        self._check_shape(x)
        covariates = self._checked(covariates, x.shape[:2]).to(x)
        self.covariate_dim = covariates.shape[-1]
        self._initialize(x, lengths, sample_weights, covariates)

    def check_covariates(self, rows: int, lengths: Any = None, covariates: Any = None, **others: Any) -> None:
        """Raise a ValueError unless there is a row of covariates for each step."""
        super().check_covariates(rows, lengths, **others)
        self._checked(covariates, (rows, None))

    def _checked(self, covariates: Any, rows: Any) -> Tensor:
        return checked_covariates(self._name, covariates, rows, self.covariate_dim)
