r"""Rows against parameter cells in natural form: every exponential family is scored and learned by matrix products.

A site whose parameters vary over `c` cells (mixture components, hidden states) and whose value varies over `n` rows
has the log-density table

.. math:: \log p(x_n \mid \theta_k) = \Theta_k \cdot F_n + a_k + h_n

with features :math:`F_n` of the row, natural parameters :math:`\Theta_k` and :math:`a_k = -A(\theta_k)`. Its expected
sufficient statistics under weights W are :math:`W F^\top`: the same features, the other matrix product. Features are
made for a block of rows at a time, so memory grows with rows times cells and never with rows times features.

Products run about the values' centre, in float64 unless the data are float32 and nothing is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.m_step import ExponentialFamily, Reference, Statistics, closed_form
from pyro_lvm.ops.cells import Cells
from pyro_lvm.ops.scratch import Scratch

__all__ = ["Kernel", "broadcast_mask", "dtype_of", "has_family_density", "peel", "rows_of_a_block"]

# Numbers in one block of features: larger blocks leave the cache, smaller ones starve the products.
BLOCK_NUMBERS = 1 << 20
# Nats in the largest term of a log-density: beyond, float32 products lose more than 1e-4 nats, float64's 1e-6.
SINGLE_LIMIT, DOUBLE_LIMIT = 500.0, 1e9

# Symbols from which on looking them up beats products with their one-hot codes.
MANY_SYMBOLS = 64


def rows_of_a_block(num_features: int) -> int:
    """How many rows to make features for at a time."""
    return max(256, min(16384, BLOCK_NUMBERS // max(1, num_features)))


@dataclass
class Kernel:
    """One site in natural form.

    Attributes:
        base: The distribution inside all wrappers.
        family: Its natural form.
        cells: Rows and cells; `cells.rows` has shape (n, *inner, *event).
        inner: Shape of the dimensions that `Independent` declares to be events.
        reference: The point about which statistics are gathered.
        mask: Which entries count, (n, *inner) or (n, 1, ...); None if all do.
        coefficients: Natural parameters, (c, m), then minus the log-normalizer for each masked dimension.
        constant: Minus the log-normalizer, (c,); zero where there is a mask.
        dtype: The type of the products.
        accurate: Whether log-densities keep six decimals: far from the centre they are small differences.
    """

    base: Any
    family: ExponentialFamily
    cells: Cells
    inner: torch.Size
    reference: Reference | None
    mask: Tensor | None
    coefficients: Tensor
    constant: Tensor
    dtype: torch.dtype
    accurate: bool = True

    @classmethod
    def of(
        cls,
        fn: Any,
        value: Tensor,
        mask: Any = None,
        reference: Reference | None = None,
        exact: bool = True,
        correction: Tensor | None = None,
    ) -> Kernel | None:
        """The natural form of a site; None if it has none, or no rows that are told apart from its cells.

        Args:
            fn: The site's distribution, wrapped or not.
            value: Its value.
            mask: The site's own mask.
            reference: Where values lie, if known.
            exact: Products in float64, whatever the data's type.
            correction: Added to the log-density of every cell of the unwrapped distribution, nats.
        """
        base, inner, masks = peel(fn, mask)
        family = closed_form(base)
        if not isinstance(family, ExponentialFamily) or not has_family_density(base):
            return None
        inside = len(inner) + family.event_dim
        reference = reference or family.reference(base, value, tuple(range(value.dim() - inside)))
        natural, log_normalizer = family.natural(base, reference)
        log_normalizer = log_normalizer if correction is None else log_normalizer - correction
        trailing = family.trailing(base)
        widths = [len(inner) + len(t) for t in trailing]
        joint = broadcast_mask(masks, fn.batch_shape, inner)
        batch = torch.Size(fn.batch_shape)
        if joint is not None:
            batch = torch.broadcast_shapes(batch, joint.shape[: joint.dim() - len(inner)])
        cells = Cells.of(
            batch,
            value,
            inside,
            *((eta, width) for eta, width in zip(natural, widths, strict=True)),
            (log_normalizer, len(inner)),
        )
        if cells is None:
            return None
        row_mask = None
        if joint is not None:
            row_mask = _rows_of(joint, cells, len(inner))
            if row_mask is None:
                return None
        *etas, log_normalizer = cells.parameters
        flat = [_features_first(eta.expand(-1, *inner, *t), len(inner)) for eta, t in zip(etas, trailing, strict=True)]
        limit = torch.finfo(log_normalizer.dtype).max / 1e8
        offset = -log_normalizer.expand(-1, *inner)
        constant = offset.flatten(1).sum(-1) if inner else offset
        if row_mask is not None:
            per_entry = row_mask[0].numel() > 1
            flat.append(offset.flatten(1) if per_entry else constant.unsqueeze(-1))
            constant = torch.zeros_like(constant)
        coefficients = torch.cat(flat, -1).double().clamp(-limit, limit)
        constant = constant.double()
        dtype = torch.float64
        largest = float(offset.detach().abs().max()) if offset.numel() else 0.0
        if not exact and dtype_of(base, cells.rows) == torch.float32 and largest < SINGLE_LIMIT:
            dtype = torch.float32
        accurate = not largest > DOUBLE_LIMIT
        kernel = cls(base, family, cells, inner, reference, row_mask, coefficients, constant, dtype, accurate)
        if dtype == torch.float32 and kernel._largest_term() > SINGLE_LIMIT:
            kernel.dtype = torch.float64
        return kernel

    def _largest_term(self) -> float:
        """Nats in the terms whose sum is a log-density, at rows taken evenly: correlated columns cancel in it."""
        n = self.cells.num_rows
        some = replace(self.cells, rows=self.cells.rows[:: max(1, n // 128)])
        mask = None if self.mask is None else self.mask[:: max(1, n // 128)]
        probe = replace(self, cells=some, mask=mask)
        features = torch.empty(self.num_features, len(some.rows), dtype=torch.float64, device=some.rows.device)
        probe.write(0, len(some.rows), features)
        return float((self.coefficients.abs() @ features.abs()).max())

    @property
    def num_features(self) -> int:
        """Length of a feature vector."""
        return self.coefficients.shape[1]

    def write(self, start: int, stop: int, out: Tensor) -> None:
        """Features of some rows, into a buffer of shape (num_features, stop - start)."""
        rows = self.cells.rows[start:stop]
        inner, event = len(self.inner), self.family.event_dim
        value = rows.permute((*range(1 + inner, 1 + inner + event), *range(1, 1 + inner), 0))
        buffers, position = [], 0
        for shape in self.family.trailing(self.base):
            full = (*shape, *self.inner, len(rows))
            size = math.prod(full[:-1])
            buffers.append(out[position : position + size].view(full))
            position += size
        value = self._centred(value, buffers[0])
        self.family.fill(value, self.base, self.reference, tuple(buffers))
        if self.mask is not None:
            mask = self.mask[start:stop].movedim(0, -1).to(out.dtype)
            for buffer in buffers:
                buffer.mul_(mask)
            out[position:].view(*mask.shape).copy_(mask)

    def _centred(self, value: Tensor, buffer: Tensor) -> Tensor:
        """Values about the reference, rows last and in memory order; in the buffer, if that is where they belong."""
        fits = self.family.first_is_value and buffer.shape == value.shape
        target = buffer if fits else torch.empty(value.shape, dtype=buffer.dtype, device=buffer.device)
        if self.reference is None:
            return target.copy_(value)
        centre = self.reference.centre.to(value.dtype) if value.is_floating_point() else self.reference.centre
        inner, event = len(self.inner), self.family.event_dim
        centre = centre.permute((*range(inner, inner + event), *range(inner))).unsqueeze(-1)
        return torch.sub(value, centre, out=target)

    def log_base(self, start: int, stop: int) -> Tensor | None:
        """The base measure of some rows, (stop - start,), nats; None if it is zero."""
        h = self.family.base(self.cells.rows[start:stop], self.base)
        if h is None:
            return None
        if self.mask is not None:
            h = torch.where(self.mask[start:stop] != 0, h, 0.0)
        h = h.expand(len(h), *self.inner)
        return h.flatten(1).sum(-1) if self.inner else h

    def _symbols(self) -> list[tuple[Tensor, Tensor | None]] | None:
        """Where many symbols make one-hot features long: the symbol of every row and its mask, by column; else None."""
        width = math.prod(self.inner)
        if self.num_features < MANY_SYMBOLS * max(1, width):
            return None
        n, index = self.cells.num_rows, self.family.index(self.cells.rows)
        if index is None:
            return None
        rows = index.reshape(n, -1).expand(n, width)
        mask = None if self.mask is None else self.mask.reshape(n, -1).expand(n, width)
        return [(rows[:, j], None if mask is None else mask[:, j]) for j in range(width)]

    def _by_symbol(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (c, m) as (c, symbols, columns), and those of the mask, (c, columns or 1 or 0); views."""
        width = math.prod(self.inner)
        size = math.prod(self.family.trailing(self.base)[0]) * width
        return features[:, :size].unflatten(1, (-1, width)), features[:, size:]

    def _look_up(self, columns: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """`table`, every symbol looked up."""
        symbols, masks = self._by_symbol(self.coefficients.to(self.dtype))
        out = self.constant.to(self.dtype).expand(self.cells.num_rows, -1).clone()
        for j, (rows, mask) in enumerate(columns):
            found = symbols[:, :, j].T.contiguous()[rows]
            out += found if mask is None else found * mask.unsqueeze(-1)
        if self.mask is not None:
            out += self.mask.flatten(1).to(self.dtype) @ masks.T
        return out.T

    def _count(self, columns: list[tuple[Tensor, Tensor | None]], weights: Tensor, out: Tensor) -> Tensor:
        """`sums`, every weight added where its symbol is."""
        symbols, masks = self._by_symbol(out)
        for j, (rows, mask) in enumerate(columns):
            symbols[:, :, j].index_add_(1, rows, weights if mask is None else weights * mask)
        if self.mask is not None:
            masks.copy_(weights @ self.mask.flatten(1).double())
        return out

    def table(self, scratch: Scratch | None = None) -> Tensor:
        """The log-density of every cell and row, (c, n), nats; in the memory given, if any."""
        n = self.cells.num_rows
        columns = self._symbols()
        if columns is not None:
            return self._look_up(columns)
        coefficients, constant = self.coefficients.to(self.dtype), self.constant.to(self.dtype).unsqueeze(-1)
        scratch = scratch or Scratch()
        out = scratch.take("table", (len(constant), n), constant)
        for start in range(0, n, block := rows_of_a_block(self.num_features)):
            stop = min(n, start + block)
            features = scratch.take("features", (self.num_features, stop - start), out)
            self.write(start, stop, features)
            torch.addmm(constant, coefficients, features, out=out[:, start:stop])
            base = self.log_base(start, stop)
            if base is not None:
                out[:, start:stop] += base
        return out

    def scores(self, scratch: Scratch | None = None) -> Tensor:
        """The log-density in the site's batch shape and in the type that `log_prob` would give, nats."""
        return self.cells.unflatten(self.table(scratch).to(dtype_of(self.base, self.cells.rows)))

    def sums(self, weights: Tensor, scratch: Scratch | None = None) -> Tensor:
        """Weighted sums of all features, (c, m), from weights (c, n)."""
        scratch = scratch or Scratch()
        n = self.cells.num_rows
        out = torch.zeros(len(weights), self.num_features, dtype=torch.float64, device=weights.device)
        columns = self._symbols()
        if columns is not None:
            return self._count(columns, weights.double(), out)
        for start in range(0, n, block := rows_of_a_block(self.num_features)):
            stop = min(n, start + block)
            features = scratch.take("features", (self.num_features, stop - start), out)
            self.write(start, stop, features)
            out.addmm_(weights[:, start:stop].double(), features.T)
        return out

    def gather(self, weights: Tensor, variance_floor: float, scratch: Scratch | None = None) -> Statistics:
        """Statistics by name under weights broadcastable to the site's batch shape."""
        table = self.cells.flatten(weights).double()
        return self.collect(table.sum(-1), self.sums(table, scratch), variance_floor)

    def collect(self, total: Tensor, sums: Tensor, variance_floor: float) -> Statistics:
        """Statistics by name from total weights (c,) and weighted sums of features (c, m)."""
        shape = (*self.cells.cell_shape, *self.inner)
        count, parts, position = len(sums), [], 0
        for trailing in self.family.trailing(self.base):
            size = math.prod((*trailing, *self.inner))
            part = sums[:, position : position + size].reshape(count, *trailing, *self.inner)
            order = (0, *range(1 + len(trailing), part.dim()), *range(1, 1 + len(trailing)))
            parts.append(part.permute(order).reshape((*shape, *trailing)))
            position += size
        if self.mask is not None:
            total = sums[:, position:]
        per_entry = total.dim() > 1 and total.shape[1] > 1
        total = total.reshape(count, *(self.inner if per_entry else [1] * len(self.inner)))
        total = total.expand(count, *self.inner).reshape(shape)
        return self.family.collect(self.base, self.reference, total, tuple(parts), variance_floor)


def dtype_of(base: Any, value: Tensor) -> torch.dtype:
    """The type that `log_prob` would give."""
    tensors = [value, *(v for v in vars(base).values() if isinstance(v, Tensor))]
    found = {t.dtype for t in tensors if t.is_floating_point()}
    return torch.float64 if torch.float64 in found or not found else max(found, key=lambda t: torch.finfo(t).bits)


def has_family_density(fn: Any) -> bool:
    """Whether a distribution's density is its family's: a user's subclass may have one of its own."""
    owner = next(kind for kind in type(fn).__mro__ if "log_prob" in vars(kind))
    return (
        owner.__module__.startswith(("torch.", "pyro.distributions", "pyro_lvm.")) or type(fn) in closed_form.registry
    )


def peel(fn: Any, mask: Any) -> tuple[Any, torch.Size, list[tuple[Any, int]]]:
    """The distribution inside all wrappers, the shape that they declare events, and masks with the depth of each."""
    depth = 0
    masks = [] if mask is None else [(mask, 0)]
    while True:
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, depth))
            fn = fn.base_dist
        elif isinstance(fn, torch.distributions.Independent):
            depth += fn.reinterpreted_batch_ndims
            fn = fn.base_dist
        else:
            inner = fn.batch_shape[len(fn.batch_shape) - depth :]
            return fn, inner, [(m, depth - d) for m, d in masks if m is not True]


def broadcast_mask(masks: list[tuple[Any, int]], batch: torch.Size, inner: torch.Size) -> Tensor | None:
    """All masks as one, of shape (outer batch, inner)."""
    joint = None
    for mask, missing in masks:
        tensor = torch.as_tensor(mask)
        tensor = tensor.reshape(*tensor.shape, *([1] * missing))
        joint = tensor if joint is None else joint & tensor
    if joint is not None and joint.dim() < len(inner):
        joint = joint.reshape(*([1] * (len(inner) - joint.dim())), *joint.shape)
    return joint


def _rows_of(mask: Tensor, cells: Cells, inside: int) -> Tensor | None:
    """A mask as (n, *inner); None if it tells cells apart."""
    ndim = len(cells.shape)
    mask = mask.reshape((1,) * (ndim + inside - mask.dim()) + tuple(mask.shape))
    cell_dims, row_dims = cells.order[: cells.num_cell_dims], cells.order[cells.num_cell_dims :]
    if any(mask.shape[d] > 1 for d in cell_dims):
        return None
    mask = mask.permute((*cell_dims, *row_dims, *range(ndim, ndim + inside)))
    sizes = [cells.shape[d] for d in row_dims]
    tail = mask.shape[ndim:]
    return mask.expand((*([1] * len(cell_dims)), *sizes, *tail)).reshape(cells.num_rows, *tail)


def _features_first(eta: Tensor, inner: int) -> Tensor:
    """From (c, *inner, *trailing) to (c, trailing * inner), the order in which features are written."""
    order = (0, *range(1 + inner, eta.dim()), *range(1, 1 + inner))
    return eta.permute(order).flatten(1) if eta.dim() > 1 else eta.unsqueeze(-1)
