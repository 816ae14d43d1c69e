r"""The design matrix of a location that is linear in parameters, read off the autograd graph.

The Jacobian between coefficients and a location has far fewer columns than coefficients: those of different components
never meet in one cell (a state and an output) of the location. Coefficients that no cell shares get one *colour*; the
derivative along all coefficients of a colour at once is one column of the design matrix of every cell. A column that
is the same in all cells is kept once.

References:
    A. Curtis, M. Powell, J. Reid (1974), On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 13.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm.infer.blocks import fixed_noise
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import innermost, unwrap
from pyro_lvm.ops.cells import compact

__all__ = ["Design", "Moved"]

# Numbers of the design matrices that are laid out at a time.
BLOCK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Moved:
    """A site after the coefficients have changed.

    Attributes:
        loc: The new location, where that is what changed.
        value: The new value, where a prior's value is what changed.
        spread: Variance of the value over the rows: what a variance floor is relative to.
    """

    loc: Tensor | None
    value: Tensor | None
    spread: Tensor


class Design:
    """The mean of a Normal site minus its value, as a function of coefficients, its entries laid out as (cells, rows).

    Rows are the indices of the given plates, cells those of everything else: states, and outputs of one row.
    """

    def __init__(self, factor: Factor, coefficients: list[Tensor], plates: frozenset[str]) -> None:
        self.factor = factor
        self.plates = plates
        self.coefficients = coefficients
        self.fn = innermost(factor.fn)
        value = factor.value
        self.shape = torch.broadcast_shapes(self.fn.batch_shape, value.shape)
        inside, ndim = len(self.fn.batch_shape) - len(factor.fn.batch_shape), len(self.shape)
        frames = [frame for frame in factor.site["cond_indep_stack"] if frame.vectorized and frame.name in plates]
        rows = {ndim + frame.dim - inside for frame in frames}
        self.row_dims = [d for d in range(ndim) if d in rows]
        self.cell_dims = [d for d in range(ndim) if d not in rows]
        self.cells = math.prod(self.shape[d] for d in self.cell_dims)
        self.moves_value = isinstance(value, Tensor) and value.requires_grad
        with torch.enable_grad():
            loc = compact(self.fn.loc)
            self.mean = loc - value if self.moves_value else loc
            self.cotangent = torch.zeros_like(self.mean, requires_grad=True)
            self.pulled = torch.autograd.grad(
                self.mean, coefficients, self.cotangent, create_graph=True, retain_graph=True, allow_unused=True
            )

    @property
    def linear(self) -> bool:
        """Whether the derivative is the same everywhere: its graph must not come back to the coefficients."""
        product = self.product(1 + self._noise(self._count), keep_graph=True)
        if not product.requires_grad:
            return True
        found = torch.autograd.grad(product.sum(), self.coefficients, retain_graph=True, allow_unused=True)
        return all(gradient is None for gradient in found)

    @property
    def _count(self) -> int:
        return sum(c.numel() for c in self.coefficients)

    def _noise(self, count: int) -> Tensor:
        return fixed_noise(self.mean.new_empty(count))

    def product(self, tangent: Tensor, keep_graph: bool = False) -> Tensor:
        """How the mean moves along a direction (coefficients,): the backward pass is linear in its cotangent."""
        parts = tangent.split([c.numel() for c in self.coefficients])
        used = [
            (pulled, part.reshape(pulled.shape).to(pulled.dtype))
            for pulled, part in zip(self.pulled, parts, strict=True)
            if pulled is not None and pulled.requires_grad
        ]
        if not used:
            return torch.zeros_like(self.mean)
        outputs, tangents = zip(*used, strict=True)
        with torch.enable_grad():
            (moved,) = torch.autograd.grad(
                outputs, self.cotangent, tangents, retain_graph=True, create_graph=keep_graph, allow_unused=True
            )
        return torch.zeros_like(self.mean) if moved is None else moved

    def table(self, tensor: Tensor) -> Tensor:
        """Lay out as (cells, rows), or (1, rows) if all cells are the same."""
        tensor = tensor.reshape((1,) * (len(self.shape) - tensor.dim()) + tuple(tensor.shape))
        alike = all(tensor.shape[d] == 1 for d in self.cell_dims)
        shape = [1 if alike and d in self.cell_dims else size for d, size in enumerate(self.shape)]
        return tensor.expand(shape).permute((*self.cell_dims, *self.row_dims)).reshape(1 if alike else self.cells, -1)

    def colour(self) -> Tensor:
        """Give coefficients that meet in no cell one colour: (cells, colours), the number of coefficients for none."""
        rows = math.prod(self.shape[d] for d in self.row_dims)
        noise = 1 + self._noise(rows)
        meets = torch.zeros(self._count, self.cells, dtype=torch.bool, device=self.mean.device)
        sizes = [self.shape[d] for d in (*self.cell_dims, *self.row_dims)]
        back = torch.tensor([*self.cell_dims, *self.row_dims]).argsort().tolist()
        for cell in range(self.cells):
            cotangent = torch.zeros(self.cells, rows, dtype=self.mean.dtype, device=self.mean.device)
            cotangent[cell] = noise
            cotangent = cotangent.reshape(sizes).permute(back).sum_to_size(self.mean.shape)
            found = torch.autograd.grad(
                self.mean, self.coefficients, cotangent, retain_graph=True, materialize_grads=True
            )
            meets[:, cell] = torch.cat([gradient.reshape(-1) for gradient in found]) != 0
        if bool((meets.sum(1) <= 1).all()):  # no two cells share one: any order will do
            return _listed(meets)
        entries = torch.full((self.cells, 0), self._count, device=self.mean.device)
        for coefficient in meets.any(1).nonzero().flatten().tolist():
            mine = meets[coefficient]
            free = (entries[mine] == self._count).all(0).nonzero().flatten()
            if not len(free):
                entries = torch.cat([entries, entries.new_full((self.cells, 1), self._count)], 1)
            entries[mine, int(free[0]) if len(free) else -1] = coefficient
        return entries

    def columns(self, entries: Tensor) -> list[Tensor]:
        """The column of each colour, (cells, rows), or (1, rows) if it is the same in all cells."""
        tangents = self.mean.new_zeros(entries.shape[1], self._count + 1)
        tangents = tangents.scatter(1, entries.T, 1.0)[:, :-1]
        columns = []
        for tangent in tangents:
            column = self.table(self.product(tangent))
            columns.append(column[:1].clone() if bool((column == column[:1]).all()) else column)
        return columns

    def explained(self, entries: Tensor, columns: list[Tensor]) -> bool:
        """Whether the columns make up the whole derivative."""
        if len(entries) != self.cells:
            return False
        count = self._count
        noise = torch.cat([self._noise(count), self.mean.new_zeros(1)])
        expected = self.mean.new_zeros(self.cells, 1)
        size = torch.zeros_like(expected)
        for column, coefficient in zip(columns, entries.T, strict=True):
            part = column * noise[coefficient].unsqueeze(-1)
            expected, size = expected + part, size + part.abs()
        difference = (self.table(self.product(noise[:count])) - expected).abs()
        rounding = (16 + len(columns)) * torch.finfo(self.mean.dtype).eps
        return bool((difference <= rounding * size).all())

    def equations(self, entries: Tensor, columns: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The normal equations of every cell, in parts.

        Yields:
            Coefficients, (cells, colours), products of columns, (cells, colours, colours), and of columns with
            residuals, (cells, colours).
        """
        if not columns:
            return
        fn, weights = unwrap(self.factor.fn, self.factor.weights)
        precision = self.table((weights / compact(fn.scale).square()).detach().expand(self.shape)).double()
        residual = self.table((self.factor.value - fn.loc).detach().expand(self.shape)).double()
        residual = torch.where(precision > 0, residual, 0.0)
        precision, residual = precision.expand(self.cells, -1), residual.expand(self.cells, -1)
        width, rows = len(columns), precision.shape[1]
        step = max(1, BLOCK_NUMBERS // (width * rows))
        for start in range(0, self.cells, step):
            part = slice(start, start + step)
            design = torch.stack([column.expand(self.cells, -1)[part] for column in columns], 1).double()
            weighted = design * precision[part].unsqueeze(1)
            yield entries[part], weighted @ design.mT, (weighted @ residual[part].unsqueeze(-1)).squeeze(-1)

    def moved(self, step: Tensor) -> Moved:
        """The site after a step of the coefficients."""
        change, value = self.product(step), self.factor.value
        dims = [d - len(self.shape) for d in self.row_dims if d - len(self.shape) >= -value.dim()]
        spread = value.detach().double()
        spread = spread.var(dims, correction=0, keepdim=True) if dims else torch.zeros_like(spread)
        if self.moves_value:
            return Moved(None, (value - change).detach(), spread)
        return Moved((self.mean + change).detach(), None, spread)


def _listed(meets: Tensor) -> Tensor:
    """The coefficients of every cell, where each is of one cell: (cells, most), their number for none."""
    count, cells = meets.shape
    coefficient, cell = meets.nonzero().unbind(-1)
    order = cell.argsort(stable=True)
    coefficient, cell = coefficient[order], cell[order]
    size = torch.bincount(cell, minlength=cells)
    place = torch.arange(len(cell), device=cell.device) - (size.cumsum(0) - size)[cell]
    entries = torch.full((cells, int(size.max()) if len(cell) else 0), count, device=meets.device)
    entries[cell, place] = coefficient
    return entries
