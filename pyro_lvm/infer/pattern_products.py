r"""Rows with gaps against normal laws, by matrix products for every pattern of known entries.

Rows of one pattern o have log-densities that are linear in their features :math:`(y, y y^\top)`, where y is the row
about the centre with zeros for what is missing, and expected complete statistics that are linear in the weighted sums
of these features: with :math:`\mathrm{E}[x \mid x_o] = A y + b` and conditional covariance C,

.. math::

    \sum w\, \mathrm{E}[x x^\top] = A S_2 A^\top + A S_1 b^\top + b S_1^\top A^\top + S_0 (b b^\top + C),
    \qquad S_j = \sum w\, y^{\otimes j}.

So nothing of the size rows times cells times columns is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_lvm.distributions import PartialMultivariateNormal
from pyro_lvm.distributions.partial_multivariate_normal import Rows
from pyro_lvm.infer.families.multivariate_normal import pairs_of_columns, write_pairs
from pyro_lvm.infer.natural import DOUBLE_LIMIT, rows_of_a_block
from pyro_lvm.ops.missing import patterns

__all__ = ["PatternProducts"]

# Rows of a pattern, on average, that repay a product of its own.
ROWS_PER_PATTERN = 32


@dataclass
class PatternProducts:
    """One site, its rows sorted by pattern.

    Attributes:
        rows: Rows and cells, in float64.
        kinds: The patterns, shape (p, d).
        count: How many rows have each, shape (p,).
        order: Row numbers by pattern, shape (n,).
        centre: Mean of the known entries, shape (d,).
        y: Rows by pattern, about the centre, 0 where missing; columns first, shape (d, n).
    """

    rows: Rows
    kinds: Tensor
    count: Tensor
    order: Tensor
    centre: Tensor
    y: Tensor

    @classmethod
    def of(cls, law: PartialMultivariateNormal, value: Tensor) -> PatternProducts | None:
        """The products; None where parameters vary from row to row, or patterns have few rows."""
        rows = Rows(law, value, torch.float64)
        if rows.own:
            return None
        kinds, number, count = patterns(rows.known)
        if len(rows.x) < ROWS_PER_PATTERN * len(kinds):
            return None
        known = rows.known.to(rows.x)
        centre = (rows.x * known).sum(0) / known.sum(0).clamp_min(1)
        order = number.argsort(stable=True)
        y = torch.where(rows.known, rows.x - centre, 0.0)[order].T.contiguous()
        return cls(rows, kinds, count, order, centre, y)

    def log_density(self) -> Tensor | None:
        """Marginal log-densities in the shape of the batch, nats; None if products would lose decimals."""
        rows = self.rows
        loc = rows.loc - self.centre
        d = loc.shape[-1]
        row, column, factor = (t.to(loc.device) for t in pairs_of_columns(d))
        table = loc.new_empty(rows.num_cells, len(rows.x))
        for known, blocks in self._groups():
            root = torch.linalg.cholesky(self._known_block(known))
            precision = torch.cholesky_inverse(root) * (known.unsqueeze(-1) & known)
            first = (precision @ loc.unsqueeze(-1)).squeeze(-1)
            far = 0.5 * (first * loc).sum(-1)
            if not bool((far <= DOUBLE_LIMIT).all()):
                return None
            log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            constant = -far - log_det - 0.5 * math.log(2 * math.pi) * int(known.sum())
            second = (precision[..., row, column] * factor.to(loc)).expand(len(loc), -1)
            coefficients = torch.cat([first, second], -1)
            for part in blocks:
                table[:, part] = torch.addmm(constant.unsqueeze(-1), coefficients, self._features(part))
        return rows.unflatten(table[:, self.order.argsort()])

    def expected_moments(self, weights: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `PartialMultivariateNormal.expected_moments`."""
        rows = self.rows
        table, loc = rows.flatten(weights.double())[:, self.order], rows.loc - self.centre
        cells, d = loc.shape
        row, column, _ = (t.to(loc.device) for t in pairs_of_columns(d))
        first, second = loc.new_zeros(cells, d), loc.new_zeros(cells, d, d)
        for known, blocks in self._groups():
            sums = loc.new_zeros(cells, d + len(row))
            total = loc.new_zeros(cells)
            for part in blocks:
                weight = table[:, part]
                sums += weight @ self._features(part).T
                total += weight.sum(-1)
            square = loc.new_empty(cells, d, d)
            square[:, row, column] = square[:, column, row] = sums[:, d:]
            mean = sums[:, :d].unsqueeze(-1)
            across = torch.where(known, rows.whole, 0.0)  # columns of known entries
            gain = torch.cholesky_solve(across.mT, torch.linalg.cholesky(self._known_block(known))).mT
            missing = ~known
            matrix = torch.where(missing.unsqueeze(-1), gain, torch.diag_embed(known.to(loc)))
            shift = torch.where(missing, loc - (gain @ (loc * known).unsqueeze(-1)).squeeze(-1), 0.0).unsqueeze(-1)
            left = torch.where(missing.unsqueeze(-1) & missing, rows.whole - gain @ across.mT, 0.0)
            moved = matrix @ mean
            cross = moved @ shift.mT
            first += (moved + total[:, None, None] * shift).squeeze(-1)
            second += matrix @ square @ matrix.mT + cross + cross.mT
            second += total[:, None, None] * (shift @ shift.mT + 0.5 * (left + left.mT))
        total, change = table.sum(-1), self.centre - centre
        whole = first + total.unsqueeze(-1) * change
        cross = first.unsqueeze(-1) * change
        second = second + cross + cross.mT + total[:, None, None] * change.unsqueeze(-1) * change
        return rows.summed(total), rows.summed(whole), rows.summed(second)

    def _groups(self) -> Iterator[tuple[Tensor, list[slice]]]:
        """Each pattern and the places of its rows, a block at a time."""
        size, start = rows_of_a_block(self._num_features), 0
        for known, count in zip(self.kinds, self.count.tolist(), strict=True):
            end = start + count
            yield known, [slice(begin, min(begin + size, end)) for begin in range(start, end, size)]
            start = end

    def _known_block(self, known: Tensor) -> Tensor:
        """Covariances of the known entries, the identity elsewhere."""
        whole = self.rows.whole
        return torch.where(known.unsqueeze(-1) & known, whole, torch.eye(whole.shape[-1]).to(whole))

    @property
    def _num_features(self) -> int:
        d = len(self.y)
        return d + len(pairs_of_columns(d)[0])

    def _features(self, part: slice) -> Tensor:
        """Features of some rows, features first."""
        y = self.y[:, part]
        d, out = len(y), y.new_empty(self._num_features, y.shape[1])
        out[:d] = y
        write_pairs(y, out[d:])
        return out
