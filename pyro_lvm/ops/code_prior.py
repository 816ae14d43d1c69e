r"""What a sparse prior says of codes: where they are most probable given rows, and laws close to their posterior.

In units of the noise and of the prior's scale, with :math:`c = W^\top x` and :math:`G = W^\top W`, the log-density of
the codes u of a row is, up to a constant, minus

.. math:: \tfrac12 u^\top G u - c^\top u + \sum_j \rho_j(u_j).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pyro_lvm.ops.coordinate_descent import descend, times

__all__ = ["CodePrior"]


class CodePrior(ABC):
    r"""Base of priors of codes, in units of their scale.

    Attributes:
        arguments: What else the prior's law has than location and scale, in the order of the constructor's arguments,
            each of shape (k,).
    """

    arguments: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def penalty(self, codes: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        r""":math:`\rho_j(u_j)`, nats, up to a constant."""

    @abstractmethod
    def shrink(self, level: Tensor, curvature: Tensor | float, code: Tensor, j: int) -> Tensor:
        """Where entry j of rows moves, the others held: as `ops.coordinate_descent` asks."""

    @abstractmethod
    def solved(self, products: Float[Tensor, "n k"], gram: Float[Tensor, "*n k k"], tol: float) -> Float[Tensor, "n k"]:
        """Modes of the codes of rows.

        Args:
            products: c, of every row with the columns.
            gram: G, of the columns with each other; or one for every row, shape (n, k, k).
            tol: What is left of the conditions of a mode, in units of the prior.
        """

    @abstractmethod
    def laws(self, products: Float[Tensor, "n k"], gram: Float[Tensor, "*n k k"]) -> tuple[Tensor, ...]:
        """Numbers of laws close to the posterior of the codes of rows; each has rows along its first axis."""

    def improve(self, products: Tensor, gram: Tensor, codes: Tensor, sweeps: int) -> None:
        """Move codes (n, k) closer to a mode, in place; their density never falls."""
        moved = codes.mT.contiguous()
        descend(products.mT.contiguous(), gram, self.shrink, moved, sweeps)
        codes.copy_(moved.mT)

    def objective(
        self, products: Float[Tensor, "n k"], gram: Float[Tensor, "*n k k"], codes: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Minus the log-density of codes, nats, up to a constant of each row."""
        return (codes * (0.5 * times(codes, gram) - products) + self.penalty(codes)).sum(-1)
