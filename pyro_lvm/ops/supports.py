r"""All supports of a few codes: which entries are not zero, and what follows from that.

With products c, :math:`A = G + I` and a support S, codes given it are normal with mean :math:`A_{SS}^{-1} c_S` and
covariance :math:`A_{SS}^{-1}`, and

.. math::

    \log p(S \mid x) = \tfrac12 c_S^\top A_{SS}^{-1} c_S - \tfrac12 \log |A_{SS}|
        + \sum_{j \in S} \mathrm{logit}\, \pi_j + \text{constant}
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Scores", "every_support", "given_support", "support_scores"]

ENTRIES = 2**21  # of the codes of all supports that are looked at together


class Scores(NamedTuple):
    r"""What rows say of all supports, in the order of `every_support`.

    Attributes:
        fit: Half of :math:`c_S^\top A_{SS}^{-1} c_S`, shape (n, 2^k).
        volume: Half of :math:`\log |A_{SS}|`, shape (n, 2^k).
    """

    fit: Tensor
    volume: Tensor


def every_support(like: Tensor, k: int) -> Tensor:
    """Zeros and ones, shape (2^k, k): entry j of the support number s is its bit j."""
    entries = torch.arange(k, device=like.device)
    return ((torch.arange(2**k, device=like.device).unsqueeze(-1) >> entries) & 1).to(like)


def support_scores(products: Tensor, gram: Tensor) -> Scores:
    """How well all supports explain rows.

    Args:
        products: c, of every row with the columns, shape (n, k).
        gram: G, shape (k, k), or one for every row, shape (n, k, k).
    """
    n, k = products.shape
    every = every_support(products, k)
    fit, volume = products.new_empty(2, n, 2**k)
    for rows in torch.arange(n, device=products.device).split(max(1, ENTRIES // (2**k * k**2))):
        factor = _factor(gram if gram.dim() == 2 else gram[rows].unsqueeze(1), every)
        level = (products[rows].unsqueeze(1) * every).unsqueeze(-1)
        part = torch.linalg.solve_triangular(factor, level, upper=False).squeeze(-1)
        fit[rows] = 0.5 * part.square().sum(-1)
        volume[rows] = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return Scores(fit, volume)


def given_support(products: Tensor, gram: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the codes of rows given their supports, (n, k), and Cholesky factors of precisions, (n, k, k).

    Entries outside of the support are 0, with precision 1.
    """
    factor = _factor(gram, support)
    loc = torch.cholesky_solve((products * support).unsqueeze(-1), factor).squeeze(-1)
    return loc * support, factor


def _factor(gram: Tensor, support: Tensor) -> Tensor:
    inside = support.unsqueeze(-1) * support.unsqueeze(-2)
    return torch.linalg.cholesky(gram * inside + torch.eye(support.shape[-1]).to(gram))
