r"""Linear recurrences of vectors, many at once: :math:`y_{t+1} = B_t y_t + c_t`.

Where the matrix stays the same for a while, the steps of that while are found together, in a number of products that
grows with the logarithm of their number (W. Hillis, G. Steele (1986), Data parallel algorithms, CACM 29). Where it
changes often, they are running products of the maps.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.ops.associative_scan import Parts, scan

__all__ = ["apply", "recur", "stretches"]

FEW = 16  # steps that a loop takes no longer for than the products would
MANY = 32  # changes of the matrix from which on running products take less time than a loop, unless there are
CROWD = 256  # more vectors than so many
NOTHING = 1e-30  # entries of a power below this add nothing to any sum


def stretches(index: list[int]) -> list[tuple[int, int]]:
    """Where equal entries stand side by side: first place, and the place after the last, of every such stretch."""
    cuts = (np.flatnonzero(np.diff(index)) + 1).tolist()
    return list(pairwise([0, *cuts, len(index)])) if index else []


def apply(matrices: Tensor, vectors: Tensor, group: Tensor | None) -> Tensor:
    """Products of matrices by groups of vectors.

    Args:
        matrices: Shape (..., g, a, b).
        vectors: Shape (..., n, b).
        group: The matrix of each vector, shape (n,); None if there is one for all.

    Returns:
        Shape (..., n, a).
    """
    if group is None:
        return vectors @ matrices.squeeze(-3).mT
    return (matrices[..., group, :, :] @ vectors.unsqueeze(-1)).squeeze(-1)


def recur(matrices: Tensor, index: list[int], inputs: Tensor, start: Tensor, group: Tensor | None) -> Tensor:
    r"""All values of a recurrence.

    Args:
        matrices: The matrices that occur, shape (s, g, k, k).
        index: Which of them leads on from each value, length T - 1.
        inputs: What is added on the way from each value to the next, shape (T - 1, n, k).
        start: The first value, shape (n, k).
        group: As for `apply`.

    Returns:
        Shape (T, n, k).
    """
    parts = [start.unsqueeze(0)]
    pieces = stretches(index)
    if len(pieces) > MANY and len(start) <= CROWD:
        return torch.cat([*parts, _running(matrices[index], inputs, start, group)])
    now = start
    for begin, end in pieces:
        matrix = matrices[index[begin]]
        if end - begin >= FEW:
            part = _constant(matrix, inputs[begin:end], now, group)
            parts.append(part)
            now = part[-1]
            continue
        if group is not None:
            matrix = matrix[group]
            for c in inputs[begin:end].unbind(0):
                now = (matrix @ now.unsqueeze(-1)).squeeze(-1) + c
                parts.append(now.unsqueeze(0))
            continue
        turned = matrix.squeeze(0).mT
        for c in inputs[begin:end].unbind(0):
            now = torch.addmm(c, now, turned)
            parts.append(now.unsqueeze(0))
    return torch.cat(parts)


def _running(matrices: Tensor, inputs: Tensor, start: Tensor, group: Tensor | None) -> Tensor:
    """The values after the first of a recurrence, by running products of its maps, shape (T - 1, n, k)."""

    def combine(one: Parts, two: Parts) -> Parts:
        return two[0] @ one[0], two[1] + apply(two[0], one[1], group)

    inputs = torch.cat([(inputs[0] + apply(matrices[0], start, group)).unsqueeze(0), inputs[1:]])
    return scan(combine, (matrices, inputs))[1]


def _constant(matrix: Tensor, inputs: Tensor, start: Tensor, group: Tensor | None) -> Tensor:
    """The values after the first of a recurrence whose matrix does not change, shape (T - 1, n, k)."""
    found = torch.cat([(inputs[0] + apply(matrix, start, group)).unsqueeze(0), inputs[1:]])
    step = 1
    while step < len(found):
        found = torch.cat([found[:step], found[step:] + apply(matrix, found[:-step], group)])
        matrix = matrix @ matrix
        if float(matrix.detach().abs().max()) < NOTHING:
            break
        step *= 2
    return found
