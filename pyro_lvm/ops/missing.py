"""Rows with missing entries: which entries are known, column moments of those, rows grouped by what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Tiles", "column_moments", "fill", "has_gaps", "patterns", "tiles"]

# Version and answer of tensors that were looked through: every step asks about the same ones.
_SEEN = WeakTensorKeyDictionary()

# Bits of one word of a pattern: two words, one of them a row number, fit a 64-bit key.
WORD = 31


def column_moments(x: Tensor, sample_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and variance (by n) of the known entries of every column; 0 where a column has none.

    Args:
        x: Rows, shape (n, d), missing entries NaN.
        sample_weights: How often each row counts, shape (n,); once by default.

    Returns:
        Shape (d,) each.
    """
    if sample_weights is None and len(x) and not has_gaps(x):
        variance, mean = torch.var_mean(x, 0, correction=0)
        return mean, variance
    known = ~x.isnan()
    counted = known if sample_weights is None else known * sample_weights.to(x).unsqueeze(-1)
    total = counted.sum(0)
    total = torch.where(total > 0, total, 1)
    mean = (counted * torch.where(known, x, 0.0)).sum(0) / total
    return mean, (counted * torch.where(known, x - mean, 0.0).square()).sum(0) / total


def has_gaps(x: Tensor) -> bool:
    """Whether an entry may be NaN (one is, or there are infinities of both signs); looked up until x is written to."""
    if x.is_inference():
        return bool(x.sum().isnan())
    version, answer = _SEEN.get(x, (None, False))
    if version != x._version:
        version, answer = _SEEN[x] = x._version, bool(x.detach().sum().isnan())
    return answer


def fill(x: Tensor, sample_weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Put column means in place of missing entries, so that no density sees a NaN.

    Args:
        x: Rows, shape (n, d), missing entries NaN.
        sample_weights: How often each row counts, shape (n,); once by default.

    Returns:
        Rows without NaN, and which entries are known: shape (n, d), or None if all are.
    """
    if not has_gaps(x):
        return x, None
    known = ~x.isnan()
    return torch.where(known, x, column_moments(x, sample_weights)[0]), known


def patterns(known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows of a boolean table.

    Args:
        known: Shape (n, d).

    Returns:
        The patterns, shape (p, d); the pattern of each row, shape (n,); and how many rows have each, shape (p,).
    """
    number = torch.zeros(len(known), dtype=torch.long, device=known.device)
    for columns in known.split(WORD, 1):
        bits = 2 ** torch.arange(columns.shape[1], device=known.device)
        _, number = ((number << WORD) + (columns.long() * bits).sum(1)).unique(return_inverse=True)
    count = number.bincount()
    first = torch.empty_like(count)
    first[number.flip(0)] = torch.arange(len(known), device=known.device).flip(0)
    return known[first], number, count


@dataclass(frozen=True)
class Tiles:
    """Tiles of equally many rows, all rows of a tile with one pattern.

    Attributes:
        pattern: Pattern number of each tile, shape (t,).
        rows: Row numbers, shape (t, m); where a tile has fewer than m rows its last ones repeat.
        filled: Which of those are rows of the tile, shape (t, m).
    """

    pattern: Tensor
    rows: Tensor
    filled: Tensor


def tiles(number: Tensor, count: Tensor, numbers_a_row: int, numbers_a_tile: int, budget: int) -> Iterator[Tiles]:
    """Cut rows, grouped by pattern, into batches of tiles of one width.

    Widths are powers of two, so that at most half of a tile is padding and there are few batches.

    Args:
        number: Pattern of each row, shape (n,).
        count: Rows of each pattern, shape (p,).
        numbers_a_row: Size of what the caller computes for a row.
        numbers_a_tile: Size of what the caller computes for a tile.
        budget: Most numbers in one batch of tiles (one tile may exceed it).
    """
    order = number.argsort(stable=True)
    widest = 1 << max(0, (budget // max(1, numbers_a_row)).bit_length() - 1)
    whole = count // widest  # tiles of a pattern that are full, and a last one for the rest
    start = count.cumsum(0) - count
    width = (2 ** (count - whole * widest).clamp_min(1).double().log2().ceil()).long()
    rest = (count > whole * widest).nonzero().flatten()
    repeated = torch.arange(len(count), device=count.device).repeat_interleave(whole)
    step = torch.arange(len(repeated), device=count.device) - (whole.cumsum(0) - whole)[repeated]
    pattern = torch.cat([repeated, rest])
    begin = torch.cat([start[repeated] + step * widest, (start + whole * widest)[rest]])
    size = torch.cat([torch.full_like(repeated, widest), (count - whole * widest)[rest]])
    width = torch.cat([torch.full_like(repeated, widest), width[rest]])
    for m in width.unique().tolist():
        these = (width == m).nonzero().flatten()
        for part in these.split(max(1, budget // (m * numbers_a_row + numbers_a_tile))):
            offset = torch.arange(m, device=count.device)
            filled = offset < size[part].unsqueeze(-1)
            offset = torch.minimum(offset, size[part].unsqueeze(-1) - 1)
            yield Tiles(pattern[part], order[begin[part].unsqueeze(-1) + offset], filled)
