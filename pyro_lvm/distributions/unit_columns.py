"""The constraint of dictionaries: matrices whose columns have length 1."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.transforms import Transform

from pyro_lvm.ops.dictionary import unit_columns

__all__ = ["columns_of_length_one"]


class _ColumnsOfLengthOne(constraints.Constraint):
    """Matrices (..., d, k) whose columns have length 1."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Whether they have, to what rounding leaves."""
        return ((value.square().sum(-2) - 1).abs() < 1e-4).all(-1)


columns_of_length_one = _ColumnsOfLengthOne()


class _Shorten(Transform):
    """Matrices to those with columns of length 1; what is such a matrix stays."""

    domain = constraints.independent(constraints.real, 2)
    codomain = columns_of_length_one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shorten)

    def __hash__(self) -> int:
        return hash(_Shorten)

    def _call(self, x: Tensor) -> Tensor:
        return unit_columns(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return y


transform_to.register(_ColumnsOfLengthOne, lambda constraint: _Shorten())
