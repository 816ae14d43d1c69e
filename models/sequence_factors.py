"""What models of sequences with normal states share: their arguments, their checks, and counted sequences."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from pyro_lvm.distributions.linear_gaussian_chain import LinearGaussianChain
from pyro_lvm.distributions.normal_rows import check_real_columns
from pyro_lvm.handlers.counted import counted
from pyro_lvm.ops.row_checks import check_sequences
from pyro_lvm.ops.steps import Steps, check_lengths
from pyro_lvm.ops.whole_number import whole_number
from pyro_lvm.protocols import LatentVariableModel

__all__ = ["SequenceFactors"]

FLOOR = 1e-6  # least share of a column's variance that is noise


class SequenceFactors(LatentVariableModel):
    """Base of the models whose sequences are observed by a `LinearGaussianChain`.

    Args:
        data_dim: Number of columns d; taken from the data by `initialize` if None.

    Raises:
        ValueError: An argument is out of range.
    """

    sequences: ClassVar[bool] = True
    handles_missing: ClassVar[bool] = True
    least_gain: ClassVar[float] = 1e-7
    num_steps: Tensor
    noise_floor: Tensor

    def __init__(self, data_dim: int | None = None) -> None:
        super().__init__()
        self.data_dim = None if data_dim is None else whole_number(self._name, "data_dim", data_dim)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(
        self,
        x: Float[Tensor, "n t d"] | None = None,
        lengths: Int[Tensor, " n"] | None = None,
        *,
        size: int | None = None,
        num_steps: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n t e"]:
        """Run the program.

        Args:
            x: Observed sequences, shape (n, T, d), NaN where missing; None to generate.
            lengths: Number of steps of every sequence, shape (n,); T by default. What lies beyond does not matter.
            size: Number of sequences to generate.
            num_steps: Number of steps to generate; by default that of the longest training sequence.
            sample_weights: How often each sequence counts, shape (n,), >= 0; once by default.

        Returns:
            What is observed of the sequences: themselves, shape (n, T, d), unless the model expands them.

        Raises:
            ValueError: There are neither sequences nor a size.
        """
        if x is None and size is None:
            raise ValueError(f"{self._name}: expected sequences x or a size to generate; got neither.")
        steps = x.shape[1] if x is not None else int(self.num_steps) if num_steps is None else num_steps
        rows: Any = size if x is None else len(x)
        law = self._law(num_steps=steps, lengths=lengths)
        seen = None if x is None else self._seen(x)
        with pyro.plate("data", rows), counted(sample_weights, law.weight):
            found = pyro.sample("x", law, obs=seen, infer={"m_step": self._maximise})
        return found.to(law.weight.dtype)

    @abstractmethod
    def _law(self, **options: Any) -> LinearGaussianChain:
        """The law of a sequence."""

    @abstractmethod
    def _maximise(self, law: LinearGaussianChain, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The M-step, from sequences and how often each counts."""

    def _seen(self, x: Tensor) -> Tensor:
        """What of sequences is observed."""
        return x

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` has shape (n, T, d), with at least one step and the right d."""
        check_sequences(self._name, x, self.data_dim)

    def check_covariates(self, rows: int, lengths: Any = None, **covariates: Any) -> None:
        """Raise a ValueError unless `lengths`, if given, holds one whole number >= 1 for each of the sequences."""
        if lengths is not None:
            check_lengths(self._name, lengths, rows)

    def check_training(self, x: Tensor, lengths: Tensor | None = None, sample_weights: Tensor | None = None) -> None:
        """Raise a ValueError for sequences of one step, or columns that are constant or never known."""
        self.check(x)
        steps = Steps.of(self._name, x, lengths, sample_weights)
        longest = x.shape[1] if lengths is None else int(lengths.max())
        if longest < 2 or len(steps.rows) < 2:
            raise ValueError(
                f"{self._name}: expected at least 2 steps in a row to learn from; got {len(steps.rows)} known steps in "
                f"sequences of at most {longest}. Add steps."
            )
        check_real_columns(self._name, steps.rows)

    def _start_at(self, steps: int, variance: Tensor) -> None:
        """Keep how many steps sequences have, and how little noise their columns may have."""
        self.register_buffer("num_steps", torch.tensor(steps))
        self.register_buffer("noise_floor", FLOOR * variance)
