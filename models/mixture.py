r"""What all mixtures share: every row comes from one of K components.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_n \mid z_n = k &\sim \text{component } k
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor

from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.row_checks import check_matrix, check_weights
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["Mixture", "Priors"]

Priors = dict[str, Any]


class Mixture(LatentVariableModel):
    """Base of the mixtures: weights, the plate of the rows, the latent component, sample weights, checks.

    A subclass declares its parameters in `_start` and says, in `_observe`, how rows come from their components.

    Args:
        num_components: K >= 1.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, num_components: int, priors: bool | Priors | None = None) -> None:
        super().__init__()
        self.num_components = whole_number(self._name, "num_components", num_components)
        self.priors = priors

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    @abstractmethod
    def _num_columns(self) -> int | None:
        """Number of columns, None until it is known."""

    @abstractmethod
    def _arrange(self, x: Tensor) -> None:
        """Learn from rows what the constructor left open: number and kinds of columns."""

    @abstractmethod
    def _start(self, x: Tensor, sample_weights: Tensor | None) -> None:
        """Declare the parameters at a start for these rows."""

    @abstractmethod
    def _parameters_of_components(self) -> dict[str, Tensor]:
        """Read every parameter but the weights: outside of the plate, so that priors stand outside of it too."""

    @abstractmethod
    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        """Observe rows `x`, or generate them, each from the component that `z` names; returns the rows."""

    def forward(
        self,
        x: Float[Tensor, "n d"] | None = None,
        *,
        size: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "*states n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d), NaN where missing; None to generate.
            size: Number of rows to generate.
            sample_weights: How often each row counts, shape (n,), >= 0; once by default. For EM: Pyro's other
                inferences cannot sum `z` out under a scale of each row.

        Returns:
            Rows, shape (n, d).
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected rows x or a size to generate; got neither.")
        mixing, parameters = self._mixing(), self._parameters_of_components()
        with pyro.plate("data", size if x is None else len(x)), counted(sample_weights, mixing.logits):
            z = pyro.sample("z", mixing, infer={"enumerate": "parallel"})
            return self._observe(parameters, z, x).to(mixing.logits.dtype)

    def _mixing(self) -> Any:
        """The law of components."""
        return dist.Categorical(self.weights)

    def _checked_columns(self, data_dim: int | None) -> int | None:
        """A number of columns, None while it is left to the data."""
        return None if data_dim is None else whole_number(self._name, "data_dim", data_dim)

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right number of columns."""
        check_matrix(self._name, x, self._num_columns, advice=self._other_columns)

    def _other_columns(self, given: int) -> str:
        return f"Pass data_dim={given}, or give {self._num_columns} columns."

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for fewer rows than components, or rows that do not fit the model."""
        self.check(x)
        if len(x) < self.num_components:
            raise ValueError(
                f"{self._name}: expected at least as many rows as components ({self.num_components}); got {len(x)}. "
                "Lower num_components or add rows."
            )

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from k-means clusters of the rows; other seeds give other starts.

        Args:
            x: Rows, shape (n, d), NaN where missing.
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Fewer rows than components, rows that do not fit the model, or bad weights.
        """
        Mixture.check(self, x)
        if sample_weights is not None:
            check_weights(self._name, len(x), sample_weights)
            x, sample_weights = x[sample_weights > 0], sample_weights[sample_weights > 0].to(x)
            # a start adds rows to clusters: weights that sum to one must not be drowned by them
            sample_weights = sample_weights * (len(x) / sample_weights.sum()).clamp_min(1)
        self._arrange(x)
        self.check_training(x)
        self._start(x, sample_weights)

    def _weights_prior(self) -> Any:
        return dist.Dirichlet(torch.ones(self.num_components).to(next(self.buffers())))
