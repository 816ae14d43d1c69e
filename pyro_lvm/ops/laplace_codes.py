r"""Normal laws close to the posterior of codes with a Laplace prior.

.. math:: p(u \mid x) \propto \exp(c^\top u - \tfrac12 u^\top G u - \|u\|_1)

Of every size :math:`|u_j| \le (u_j^2 / \gamma_j + \gamma_j) / 2`, with equality where :math:`\gamma_j = |u_j|`. The
bound makes the law normal, with precision :math:`G + \mathrm{diag}(\gamma)^{-1}`, and is closest at
:math:`\gamma_j^2 = \mathrm{E}[u_j^2]`; the two are found in turn.

References:
    M. Figueiredo (2003), Adaptive sparseness for supervised learning, IEEE PAMI 25.
    M. Girolami (2001), A variational method for learning sparse and overcomplete representations, Neural Computation
        13, equations 8 to 10.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["normal_codes"]


def normal_codes(
    products: Float[Tensor, "n k"], gram: Float[Tensor, "*n k k"], rounds: int = 30
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k k"]]:
    """Means, and Cholesky factors of covariances.

    Args:
        products: c, of every row with the columns.
        gram: G, of the columns with each other; or one for every row, shape (n, k, k).
        rounds: How often size and law are found.
    """
    size = torch.ones_like(products)
    for _ in range(rounds):
        factor = torch.linalg.cholesky(gram + torch.diag_embed(size.reciprocal()))
        loc = torch.cholesky_solve(products.unsqueeze(-1), factor).squeeze(-1)
        covariance = torch.cholesky_inverse(factor)
        size = (loc.square() + covariance.diagonal(dim1=-2, dim2=-1)).sqrt()
    return loc, torch.linalg.cholesky(covariance)
