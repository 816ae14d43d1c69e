r"""Normal laws close to the posterior of codes with a sparse prior.

.. math:: p(u \mid x) \propto \exp\Big(c^\top u - \tfrac12 u^\top G u - \sum_j \rho(u_j)\Big)

Where :math:`\rho` is concave in :math:`u_j^2`, it lies below its tangents there, of slopes :math:`\tau_j / 2` with
:math:`\tau(u^2) = \rho'(u) / u`: of Laplace's prior :math:`1 / |u|`, of Student's t
:math:`(\nu + 1) / (\nu + u^2)`. A tangent makes the law normal, with precision :math:`G + \mathrm{diag}(\tau)`, and is
closest where it touches at :math:`\mathrm{E}[u_j^2]`; the two are found in turn.

References:
    M. Figueiredo (2003), Adaptive sparseness for supervised learning, IEEE PAMI 25.
    M. Girolami (2001), A variational method for learning sparse and overcomplete representations, Neural Computation
        13, equations 8 to 10.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normal_codes"]


def normal_codes(
    products: Float[Tensor, "n k"],
    gram: Float[Tensor, "*n k k"],
    precision: Callable[[Tensor], Tensor],
    rounds: int = 30,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
    r"""Means, and Cholesky factors of covariances.

    Args:
        products: c, of every row with the columns.
        gram: G, of the columns with each other; or one for every row, shape (n, k, k).
        precision: :math:`\tau`, of expected squares (n, k).
        rounds: How often slopes and laws are found.
    """
    square = torch.ones_like(products)
    for _ in range(rounds):
        factor = torch.linalg.cholesky(gram + torch.diag_embed(precision(square)))
        loc = torch.cholesky_solve(products.unsqueeze(-1), factor).squeeze(-1)
        covariance = torch.cholesky_inverse(factor)
        square = loc.square() + covariance.diagonal(dim1=-2, dim2=-1)
    return loc, torch.linalg.cholesky(covariance)
