"""Weighted moments of many rows under few cells, as matrix products over blocks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_lvm.ops.cells import Cells, sum_to

__all__ = ["second_moment"]

# Numbers in one block of quadratic features; larger blocks leave the cache, smaller ones starve the product.
BLOCK_NUMBERS = 1 << 19


def second_moment(
    value: Tensor, weights: Tensor, full: torch.Size, cells: torch.Size, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of w, w (x - c) and w (x - c)(x - c)' over the rows of every cell, in float64.

    Never forms (cells, rows, d).

    Args:
        value: Shape batch + (d,).
        weights: Shape broadcastable to `full`.
        full: The site's batch shape.
        cells: The same with size one in the dimensions to sum over.
        centre: The point c, shape (d,).

    Returns:
        Shapes `cells`, `cells + (d,)` and `cells + (d, d)`.
    """
    d = value.shape[-1]
    flat = Cells.of(full, value, 1, (torch.empty(cells), 0))
    if flat is None:  # the value varies from cell to cell: its own outer products are no larger than needed
        value, weights = value.double() - centre, weights.double()
        outer = value.unsqueeze(-1) * value.unsqueeze(-2)
        return (
            sum_to(cells, full, weights),
            sum_to(torch.Size((*cells, d)), torch.Size((*full, d)), weights.unsqueeze(-1), value),
            sum_to(torch.Size((*cells, d, d)), torch.Size((*full, d, d)), weights[..., None, None], outer),
        )
    rows, table = flat.rows, flat.flatten(weights)
    upper = torch.triu_indices(d, d, device=value.device)
    count = len(table)
    second = value.new_zeros(count, upper.shape[1], dtype=torch.float64)
    first = value.new_zeros(count, d, dtype=torch.float64)
    for start in range(0, len(rows), block := max(1, BLOCK_NUMBERS // upper.shape[1])):
        x = rows[start : start + block].double() - centre
        w = table[:, start : start + block].double()
        features = torch.empty(upper.shape[1], len(x), dtype=x.dtype, device=x.device)
        position = 0
        columns = x.T.contiguous()
        for i in range(d):
            torch.mul(columns[i:], columns[i], out=features[position : position + d - i])
            position += d - i
        second.addmm_(w, features.T)
        first.addmm_(w, x)
    total = table.sum(-1, dtype=torch.float64)
    square = second.new_empty(count, d, d)
    square[:, upper[0], upper[1]] = second
    square[:, upper[1], upper[0]] = second
    return total.reshape(cells), first.reshape(*cells, d), square.reshape(*cells, d, d)
