"""Rows against parameter cells: the two index sets that every expectation of a latent-variable model runs over.

A batch dimension of a site is a *row* dimension when no parameter varies along it, and a *cell* dimension otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cells", "compact", "sum_to"]


def compact(tensor: Tensor, event_dim: int = 0) -> Tensor:
    """Undo `expand` on batch dimensions: dimensions of stride zero become dimensions of size one (a view)."""
    for dim in range(tensor.dim() - event_dim):
        if tensor.shape[dim] > 1 and tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


@dataclass(frozen=True)
class Cells:
    """Parameters flattened to `(cells, ...)` and a value flattened to `(rows, ...)`.

    Attributes:
        rows: The value, shape (rows, *event).
        parameters: The parameters, shape (cells, *event) each.
        num_cells: Number of cells.
        shape: The batch shape that `(cells, rows)` unflattens to.
        order: The cell dimensions, then the row dimensions, of that batch shape.
    """

    rows: Tensor
    parameters: tuple[Tensor, ...]
    num_cells: int
    shape: torch.Size
    order: tuple[int, ...]
    num_cell_dims: int

    @classmethod
    def of(cls, batch: torch.Size, value: Tensor, event_dim: int, *parameters: tuple[Tensor, int]) -> Cells | None:
        """Split a batch shape, or return None where value and parameters vary along the same dimension."""
        value_batch = value.shape[: value.dim() - event_dim]
        batch = torch.broadcast_shapes(batch, value_batch)
        ndim = len(batch)
        padded = [_pad(p, ndim + e) for p, e in parameters]
        batches = [p.shape[:ndim] for p in padded]
        value = _pad(value, ndim + event_dim)
        cell_dims = [d for d in range(ndim) if any(b[d] > 1 for b in batches)]
        row_dims = [d for d in range(ndim) if d not in cell_dims]
        if any(value.shape[d] > 1 for d in cell_dims):
            return None
        row_shape = [batch[d] for d in row_dims]
        if [value.shape[d] for d in row_dims] != row_shape:
            return None
        cell_shape = [batch[d] for d in cell_dims]
        num_cells = math.prod(cell_shape)
        flat = tuple(
            p.permute((*cell_dims, *row_dims, *range(ndim, p.dim())))
            .expand((*cell_shape, *([1] * len(row_dims)), *p.shape[ndim:]))
            .reshape(num_cells, *p.shape[ndim:])
            for p in padded
        )
        rows = value.permute((*row_dims, *cell_dims, *range(ndim, value.dim()))).reshape(-1, *value.shape[ndim:])
        return cls(rows, flat, num_cells, torch.Size(batch), (*cell_dims, *row_dims), len(cell_dims))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def cell_shape(self) -> torch.Size:
        """The batch shape with size one in the row dimensions."""
        cell_dims = set(self.order[: self.num_cell_dims])
        return torch.Size(size if d in cell_dims else 1 for d, size in enumerate(self.shape))

    def unflatten(self, table: Tensor) -> Tensor:
        """From `(cells, rows)` back to the site's batch shape."""
        return table.reshape([self.shape[d] for d in self.order]).permute(
            tuple(self.order.index(d) for d in range(len(self.order)))
        )

    def flatten(self, table: Tensor) -> Tensor:
        """From the site's batch shape to `(cells, rows)`."""
        return table.expand(self.shape).permute(self.order).reshape(self.num_cells, -1)


def _pad(tensor: Tensor, ndim: int) -> Tensor:
    return tensor.reshape((1,) * (ndim - tensor.dim()) + tuple(tensor.shape))


def sum_to(shape: torch.Size, full: torch.Size, *factors: Tensor) -> Tensor:
    """Sum a broadcast product over all dimensions in which `shape` has size one, without forming the product.

    Args:
        shape: The shape of the result; every dimension is 1 or that of `full`.
        full: The shape that the product is to be thought of as having.
        factors: Tensors broadcastable to `full`.

    Returns:
        Shape `shape`.
    """
    ndim = len(full)
    padded = [_pad(f, ndim) for f in factors]
    operands: list = []
    for f in padded:
        operands += [f.reshape([s for s in f.shape if s > 1]), [d for d in range(ndim) if f.shape[d] > 1]]
    present = {d for f in padded for d in range(ndim) if f.shape[d] > 1}
    kept = [d for d in range(ndim) if shape[d] > 1 and d in present]
    result = torch.einsum(*operands, kept)
    repeats = math.prod(full[d] for d in range(ndim) if d not in present and shape[d] == 1)
    result = result.reshape([full[d] if d in kept else 1 for d in range(ndim)])
    return (result * repeats if repeats != 1 else result).expand(shape)
