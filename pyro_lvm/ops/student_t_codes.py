r"""Codes with Student's t prior: a mode by coordinate descent and Newton's steps.

.. math:: \rho(u) = \tfrac{\nu + 1}{2} \log(1 + u^2 / \nu)

With :math:`\nu = 1` it is Olshausen and Field's cost :math:`\log(1 + u^2)`. It lies below the parabola that touches it
at the last code, of curvature :math:`\tau = (\nu + 1) / (\nu + u^2)`: what is least under the parabolas is no worse,
for one entry as for all of a row. That is EM with the variance behind every code, :math:`\tau^{-1}`, as what is not
seen. There may be several modes; the one found is that to which these steps lead from zero, by way of a ridge. No code
is exactly zero.

References:
    B. Olshausen, D. Field (1996), Emergence of simple-cell receptive field properties by learning a sparse code for
        natural images, Nature 381.
    K. Lange, R. Little, J. Taylor (1989), Robust statistical modeling using the t distribution, JASA 84.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pyro_lvm.ops.code_prior import CodePrior
from pyro_lvm.ops.coordinate_descent import times
from pyro_lvm.ops.normal_codes import normal_codes

__all__ = ["StudentTCodes"]

FIRST, SWEEPS = 24, 8  # of coordinate descent before the first of Newton's steps, and between two
ROUNDS = 200  # after which a row is left where it is
CONJUGATE, NEAR = 60, 1e-4  # conjugate gradients of a step, and what part of the slope they may leave
ROWS, ENTRIES = 4096, 2**23  # at once; and of the products of columns, where every row has its own


class StudentTCodes(CodePrior):
    r"""Student's t prior of scale 1.

    Args:
        degrees_of_freedom: :math:`\nu` of each entry, shape (k,).
    """

    arguments: ClassVar[tuple[str, ...]] = ("df",)

    def __init__(self, degrees_of_freedom: Tensor) -> None:
        self.freedom = degrees_of_freedom
        self._freedom = degrees_of_freedom.tolist()

    def penalty(self, codes: Tensor) -> Tensor:
        """As in the formula above."""
        freedom = self.freedom.to(codes)
        return 0.5 * (freedom + 1) * torch.log1p(codes.square() / freedom)

    def shrink(self, level: Tensor, curvature: Tensor | float, code: Tensor, j: int) -> Tensor:
        """To the lowest point of the parabola that touches at `code`."""
        freedom = self._freedom[j]
        return level / (curvature + (freedom + 1) / (freedom + code.square()))

    def solved(self, products: Tensor, gram: Tensor, tol: float) -> Tensor:
        """A mode: no slope is larger than `tol`, or than what rounding in double precision leaves."""
        found = torch.zeros(products.shape, dtype=torch.float64, device=products.device)
        products, gram = products.double(), gram.double()
        found[~products.isfinite().all(-1)] = torch.nan
        at_once = ROWS if gram.dim() == 2 else max(1, ENTRIES // gram[0].numel())
        for rows in products.isfinite().all(-1).nonzero()[:, 0].split(at_once):
            self._settle(products, gram, found, rows, tol)
        return found

    def _settle(self, products: Tensor, gram: Tensor, codes: Tensor, left: Tensor, tol: float) -> None:
        """Move the codes of some rows to a mode, in place: sweeps, and Newton's steps where they lead down."""
        freedom = self.freedom.to(codes)
        for rounds in range(ROUNDS):
            code, product, inner = codes[left], products[left], gram if gram.dim() == 2 else gram[left]
            self.improve(product, inner, code, SWEEPS if rounds else FIRST)
            square = code.square()
            tau = _precision(square, freedom)
            slope = product - times(code, inner) - tau * code
            moved = code + _newton(inner, tau * (freedom - square) / (freedom + square), slope)
            before, after = (self.objective(product, inner, place) for place in (code, moved))
            codes[left] = torch.where((after <= before).unsqueeze(-1), moved, code)
            limit = product.abs().amax(-1) * 20 * torch.finfo(slope.dtype).eps
            left = left[slope.abs().amax(-1) > limit.clamp_min(tol)]
            if not len(left):
                return

    def laws(self, products: Tensor, gram: Tensor) -> tuple[Tensor, ...]:
        """Means and Cholesky factors of the closest normal laws."""
        return normal_codes(products, gram, partial(_precision, freedom=self.freedom.to(products)))


def _precision(square: Tensor, freedom: Tensor) -> Tensor:
    return (freedom + 1) / (freedom + square)


def _newton(gram: Tensor, bend: Tensor, slope: Tensor) -> Tensor:
    """Steps by these curvatures of the prior, by conjugate gradients: up to where they are none of a minimum."""
    weight = gram.diagonal(dim1=-2, dim2=-1) + bend.abs()
    step, rest = torch.zeros_like(slope), slope
    way = rest / weight
    size = (rest * way).sum(-1, keepdim=True)
    enough = NEAR**2 * size
    on = size > 0
    for _ in range(CONJUGATE):
        image = times(way, gram) + bend * way
        curvature = (way * image).sum(-1, keepdim=True)
        on = on & (curvature > 0) & (size > enough)
        if not bool(on.any()):
            break
        length = torch.where(on, size / curvature, 0.0)
        step, rest = step + length * way, rest - length * image
        new = (rest * rest / weight).sum(-1, keepdim=True)
        way, size = rest / weight + torch.where(on, new / size, 0.0) * way, new
    return step
