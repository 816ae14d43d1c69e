r"""Codes with Laplace's prior: the mode is the lasso's.

.. math:: \rho(u) = |u|
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.code_prior import CodePrior
from pyro_lvm.ops.lasso import lasso, soft
from pyro_lvm.ops.normal_codes import normal_codes

__all__ = ["LaplaceCodes"]


class LaplaceCodes(CodePrior):
    """Laplace's prior of scale 1."""

    shrink = staticmethod(soft(1.0))  # type: ignore[assignment]

    def penalty(self, codes: Tensor) -> Tensor:
        """Sizes."""
        return codes.abs()

    def solved(self, products: Tensor, gram: Tensor, tol: float) -> Tensor:
        """The lasso, to a violation of its conditions of at most `tol`."""
        return lasso(products, gram, 1.0, tol=tol)

    def laws(self, products: Tensor, gram: Tensor) -> tuple[Tensor, ...]:
        """Means and Cholesky factors of the closest normal laws."""
        return normal_codes(products, gram, torch.rsqrt)
