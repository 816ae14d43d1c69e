r"""Dictionaries: matrices whose columns have length 1.

.. math:: W = \arg\min_W \tfrac12 \sum_n \|x_n - W h_n\|^2, \qquad \|w_j\| = 1

Only the sums :math:`A = \sum_n h_n h_n^\top` and :math:`B = \sum_n x_n h_n^\top` of given codes matter. One column
after another goes to its best place given the others, :math:`w_j \propto b_j - \sum_{i \ne j} A_{ij} w_i`.

References:
    J. Mairal, F. Bach, J. Ponce, G. Sapiro (2010), Online learning for matrix factorization and sparse coding,
        JMLR 11, algorithm 2 (there columns may be shorter than 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm.ops.coordinate_descent import descend
from pyro_lvm.ops.lasso import soft

__all__ = ["better_dictionary", "first_dictionary", "unit_columns"]

SWEEPS = 3  # of coordinate descent over codes between two dictionaries


def unit_columns(weight: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """The columns at length 1; those of zeros stay.

    Example:
        >>> import torch
        >>> unit_columns(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
        tensor([[0.6000, 0.0000],
                [0.8000, 0.0000]])
    """
    length = torch.linalg.vector_norm(weight, dim=-2, keepdim=True)
    return weight / torch.where(length > 0, length, 1.0)


def first_dictionary(
    x: Float[Tensor, "n d"], weight: Float[Tensor, "d k"], penalty: float, rounds: int = 10
) -> Float[Tensor, "d k"]:
    """A dictionary that codes rows better, by moving codes and dictionary in turn.

    Args:
        x: Rows; few, for a start.
        weight: W, its columns of length 1.
        penalty: The factor of the sum of the sizes of codes, > 0.
        rounds: How often each moves.
    """
    codes = x.new_zeros(weight.shape[1], len(x))
    for _ in range(rounds):
        descend((x @ weight).mT.contiguous(), weight.mT @ weight, soft(penalty), codes, SWEEPS)
        weight = better_dictionary(weight, codes @ codes.mT, x.mT @ codes.mT)
    return weight


def better_dictionary(
    weight: Float[Tensor, "d k"], second: Float[Tensor, "k k"], cross: Float[Tensor, "d k"], sweeps: int = 2
) -> Float[Tensor, "d k"]:
    """A dictionary that fits no worse, by moving every column to its best place, one after another.

    Args:
        weight: W, its columns of length 1.
        second: A.
        cross: B.
        sweeps: How often every column moves.
    """
    columns = weight.mT.clone()  # contiguous
    used = (second.diagonal() > 0).tolist()
    for _ in range(sweeps):
        for j, counts in enumerate(used):
            if not counts:  # every column is as good
                continue
            place = cross[:, j] - second[j] @ columns + second[j, j] * columns[j]
            length = float(torch.linalg.vector_norm(place))
            if 0 < length < float("inf"):
                columns[j] = place / length
    return columns.mT.contiguous()
