"""The normal law of rows of which only some entries are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.cells import Cells, compact
from pyro_lvm.ops.missing import patterns, tiles

__all__ = ["PartialMultivariateNormal", "Rows"]

# Numbers in one batch of tiles: (tiles, cells, d, d) and (tiles, rows, cells, d) stay below this.
BUDGET = 1 << 21


class PartialMultivariateNormal(TorchDistribution):
    r"""Multivariate normal distribution whose density is the exact marginal of the known entries.

    .. math:: \log p(x) = \log \mathrm{Normal}(x_o;\, \mu_o, \Sigma_{oo}), \qquad o = \{j : \text{known}_j\}

    What a value holds at its unknown entries does not matter, so long as it is a number. A row of which nothing is
    known has log-density 0. Rows are grouped by pattern of known entries, with one Cholesky factor per pattern and
    component, so memory grows as rows times components, never times a matrix.

    ================  ================================  =================  ===================
    symbol            meaning                           shape              code
    ================  ================================  =================  ===================
    :math:`\mu`       mean                              batch + (d,)       `loc`
    :math:`\Sigma`    covariance                        batch + (d, d)     `covariance_matrix`
    :math:`o`         which entries are known           batch + (d,)       `known`
    ================  ================================  =================  ===================

    The three batches are broadcast against each other; the parameters are kept as they were given.

    Args:
        loc: Mean.
        covariance_matrix: Positive-definite matrix.
        known: Boolean; False where an entry is missing.
        validate_args: Check arguments and values.

    References:
        R. Little, D. Rubin (2019), Statistical Analysis with Missing Data, third edition, section 11.2.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> known = torch.tensor([[True, True], [True, False], [False, False]])
        >>> law = lvm.distributions.PartialMultivariateNormal(torch.zeros(2), torch.eye(2), known)
        >>> law.log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -0.9189,  0.0000])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "covariance_matrix": constraints.positive_definite,
        "known": constraints.independent(constraints.boolean, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, covariance_matrix: Tensor, known: Tensor, validate_args: bool | None = None
    ) -> None:
        d = loc.shape[-1]
        if covariance_matrix.shape[-2:] != (d, d) or known.shape[-1] != d or known.dtype != torch.bool:
            raise ValueError(
                f"PartialMultivariateNormal: expected a covariance of shape ({d}, {d}) and boolean known of shape "
                f"({d},) for a loc of shape ({d},); got {tuple(covariance_matrix.shape[-2:])} and {known.dtype} "
                f"{tuple(known.shape[-1:])}. Pass known=~x.isnan()."
            )
        self.loc = loc
        self.covariance_matrix = covariance_matrix
        self.known = known
        batch = torch.broadcast_shapes(loc.shape[:-1], covariance_matrix.shape[:-2], known.shape[:-1])
        super().__init__(batch, torch.Size((d,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PartialMultivariateNormal:
        """The same law over a larger batch."""
        known = self.known.expand(*batch_shape, *self.event_shape)
        return PartialMultivariateNormal(self.loc, self.covariance_matrix, known, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of all entries, whether known or not."""
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Variance of all entries, whether known or not."""
        return self.covariance_matrix.diagonal(dim1=-2, dim2=-1).expand(self._extended_shape())

    @property
    def scale_tril(self) -> Tensor:
        """Cholesky factor of the whole covariance."""
        return torch.linalg.cholesky(self.covariance_matrix)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Whole rows, unknown entries included."""
        noise = self.loc.new_empty(self._extended_shape(sample_shape)).normal_()
        return self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Marginal log-density of the known entries, nats, shape batch."""
        if self._validate_args:
            self._validate_sample(value)
        rows = Rows(self, value)
        table = rows.x.new_zeros(rows.num_cells, len(rows.x))
        columns: list[Tensor] = []
        found: list[Tensor] = []
        for tile in rows.tiles():
            factor = torch.linalg.cholesky(tile.covariance)
            white = torch.linalg.solve_triangular(factor, tile.deviation.mT, upper=False)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            constant = 0.5 * math.log(2 * math.pi) * tile.known.sum(-1).to(log_det)
            density = -0.5 * white.square().sum(-2) - (log_det + constant).unsqueeze(-1)
            found.append(density.transpose(0, 1)[:, tile.filled])
            columns.append(tile.rows[tile.filled])
        return rows.unflatten(table.index_add(1, torch.cat(columns), torch.cat(found, 1)))

    def conditional_mean(self, value: Tensor) -> Tensor:
        r"""Mean of every entry given the known ones: :math:`\mu_m + \Sigma_{mo} \Sigma_{oo}^{-1} (x_o - \mu_o)`.

        Args:
            value: Shape batch + (d,).

        Returns:
            Shape batch + (d,); known entries are those of `value`.
        """
        rows = Rows(self, value)
        table = rows.x.new_empty(rows.num_cells, *rows.x.shape)
        for tile in rows.tiles():
            mean, _ = tile.conditional()
            table[:, tile.rows[tile.filled]] = mean.transpose(0, 1)[:, tile.filled]
        return rows.unflatten(table)

    def expected_moments(self, value: Tensor, weights: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Expected sufficient statistics given the known entries, summed over the rows of every cell, in float64.

        Sums of :math:`w`, :math:`w\, \mathrm{E}[x - c \mid x_o]` and
        :math:`w\, \mathrm{E}[(x - c)(x - c)^\top \mid x_o]`.

        Args:
            value: Shape batch + (d,).
            weights: Weight of every row in every cell, broadcastable to the batch.
            centre: The point c, shape (d,).

        Returns:
            Shapes cells, cells + (d,) and cells + (d, d), where cells is the batch with size one in every dimension
            along which the parameters do not vary.

        References:
            Z. Ghahramani, M. Jordan (1994), Supervised learning from incomplete data via an EM approach, NIPS 6.
        """
        rows = Rows(self, value, torch.float64)
        table = rows.flatten(weights.double())
        count, d = rows.num_stored, rows.x.shape[-1]
        first, second = rows.x.new_zeros(count, d), rows.x.new_zeros(count, d, d)
        for tile in rows.tiles():
            mean, covariance = tile.conditional()
            weight = table[:, tile.rows].transpose(0, 1) * tile.filled.unsqueeze(1)
            centred = mean - centre
            weighted = weight.unsqueeze(-1) * centred
            rows.accumulate(first, tile, weighted.sum(-2))
            rows.accumulate(second, tile, weighted.mT @ centred + weight.sum(-1)[..., None, None] * covariance)
        return rows.summed(table.sum(-1) if not rows.own else table[0]), rows.summed(first), rows.summed(second)


class _Tile:
    """One batch of tiles: rows that share a pattern, against the cells of the parameters.

    Attributes:
        known: Shape (t, 1, d).
        rows: Row numbers, shape (t, m).
        filled: Which of them count, shape (t, m).
        covariance: That of the known entries, the identity elsewhere, so that its factor and inverse are those of the
            known block and no index is ragged; shape (t, cells, d, d).
        deviation: Value minus mean, 0 where unknown; shape (t, cells, m, d).
    """

    def __init__(self, x: Tensor, known: Tensor, rows: Tensor, filled: Tensor, loc: Tensor, whole: Tensor) -> None:
        self.known = known.unsqueeze(1)
        self.rows, self.filled = rows, filled
        self.x, self.loc, self.whole = x[rows].unsqueeze(1), loc.unsqueeze(-2), whole
        both = self.known.unsqueeze(-1) & self.known.unsqueeze(-2)
        self.covariance = torch.where(both, whole, torch.eye(whole.shape[-1]).to(whole))
        self.deviation = torch.where(self.known.unsqueeze(-2), self.x - self.loc, 0.0)

    def conditional(self) -> tuple[Tensor, Tensor]:
        """Mean of all entries given the known ones, (t, cells, m, d), and covariance, (t, cells, d, d)."""
        known = self.known.unsqueeze(-2)
        across = torch.where(known, self.whole, 0.0)  # columns of known entries
        gain = torch.cholesky_solve(across.mT, torch.linalg.cholesky(self.covariance)).mT
        mean = torch.where(known, self.x, self.loc + self.deviation @ gain.mT)
        left = self.whole - gain @ across.mT
        return mean, torch.where(known | known.mT, 0.0, 0.5 * (left + left.mT))


class Rows:
    """A distribution and a value, laid out as rows against parameter cells.

    Where parameters vary along the rows, every row is the only one of a cell of its own.

    Attributes:
        x: Shape (rows, d).
        known: Shape (rows, d).
        num_cells: Cells that every row is compared with.
        own: Whether every row has its own cell.
    """

    def __init__(self, law: PartialMultivariateNormal, value: Tensor, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or torch.result_type(law.loc, value)
        loc, whole = compact(law.loc.to(dtype), 1), compact(law.covariance_matrix.to(dtype), 2)
        known, d = compact(law.known, 1), value.shape[-1]
        self.batch = torch.broadcast_shapes(law.batch_shape, value.shape[:-1])
        parameters = torch.broadcast_shapes(loc.shape[:-1], whole.shape[:-2])
        self.cells = torch.Size((1,) * (len(self.batch) - len(parameters)) + tuple(parameters))
        shape = torch.broadcast_shapes(value.shape, known.shape)
        pairs = [
            Cells.of(self.batch, table.expand(shape), 1, (loc, 1), (whole, 2)) for table in (value.to(dtype), known)
        ]
        self.split, seen = pairs
        self.own = self.split is None or seen is None
        if self.split is None or seen is None:
            self.x, self.known, self.loc = (
                t.expand(*self.batch, d).reshape(-1, d) for t in (value.to(dtype), known, loc)
            )
            self.whole = whole.expand(*self.batch, d, d).reshape(-1, d, d)
            self.num_cells, self.num_stored = 1, len(self.x)
        else:
            self.x, self.known = self.split.rows, seen.rows
            self.loc, self.whole = self.split.parameters
            self.num_cells = self.num_stored = self.split.num_cells
        if whole.numel() == d * d:  # a tied covariance is factored once for all cells
            self.whole = whole.reshape(1, d, d)

    def tiles(self) -> Iterator[_Tile]:
        """Batches of tiles."""
        d = self.x.shape[-1]
        if self.own:
            number = torch.arange(len(self.x), device=self.x.device)
            kinds, count = self.known, torch.ones_like(number)
        else:
            kinds, number, count = patterns(self.known)
        for tile in tiles(number, count, self.num_cells * d, self.num_cells * d * d, BUDGET):
            loc = self.loc[tile.pattern].unsqueeze(1) if self.own else self.loc
            whole = self.whole[tile.pattern].unsqueeze(1) if self.own and len(self.whole) > 1 else self.whole
            yield _Tile(self.x, kinds[tile.pattern], tile.rows, tile.filled, loc, whole)

    def flatten(self, table: Tensor) -> Tensor:
        """From the batch to (cells, rows)."""
        return table.expand(self.batch).reshape(1, -1) if self.split is None or self.own else self.split.flatten(table)

    def unflatten(self, table: Tensor) -> Tensor:
        """From (cells, rows) and perhaps a last dimension to the batch."""
        if self.split is None or self.own:
            return table.reshape(*self.batch, *table.shape[2:])
        if table.dim() == 2:
            return self.split.unflatten(table)
        return torch.stack([self.split.unflatten(column) for column in table.unbind(-1)], -1)

    def accumulate(self, into: Tensor, tile: _Tile, amount: Tensor) -> None:
        """Add amounts of shape (tiles, cells, ...) to what is stored by cell."""
        if self.own:
            into[tile.rows[:, 0]] = amount[:, 0]
        else:
            into += amount.sum(0)

    def summed(self, stored: Tensor) -> Tensor:
        """What is stored by cell, in the shape of the cells."""
        trailing = stored.shape[1:]
        if not self.own:
            return stored.reshape(*self.cells, *trailing)
        stored = stored.reshape(*self.batch, *trailing)
        over = [i for i, size in enumerate(self.cells) if size == 1 and self.batch[i] > 1]
        return stored.sum(over, keepdim=True) if over else stored
