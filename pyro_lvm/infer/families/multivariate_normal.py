"""Closed form of the MultivariateNormal family, by covariance, precision or Cholesky factor."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.distributions.inverse_wishart import InverseWishart
from pyro_lvm.infer.families.counts import ratio
from pyro_lvm.infer.families.normal import spread
from pyro_lvm.infer.m_step import Argument, Conjugate, ExponentialFamily, Reference, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__ = ["COVARIANCE", "LOC", "pairs_of_columns", "scatter_matrix", "write_pairs"]


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.mT


def covariance_of(fn: Any) -> Tensor:
    """The covariance as given, so that a parameter can be recognised in it exactly, else from the Cholesky factor."""
    given = fn.__dict__.get("covariance_matrix")
    return _gram(compact(fn.scale_tril, 2)) if given is None else compact(given, 2)


def _precision_weighted(statistics: Statistics, current: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    precision = torch.linalg.inv(current["covariance_matrix"].double())
    weighted = (precision @ statistics["sum"].unsqueeze(-1)).squeeze(-1)
    return weighted, precision * statistics["total"][..., None, None]


def scatter_matrix(statistics: Statistics, loc: Tensor) -> Tensor:
    """Weighted scatter about a location given about the statistics' centre."""
    cross = statistics["centred_sum"].unsqueeze(-1) * loc.unsqueeze(-2)
    outer = statistics["total"][..., None, None] * loc.unsqueeze(-1) * loc.unsqueeze(-2)
    return statistics["square"] - cross - cross.mT + outer


def _expected_scatter(statistics: Statistics, now: dict[str, Tensor]) -> Tensor:
    """The same under the location's posterior, if it has one: `now["loc spread"]` is its covariance."""
    scatter = scatter_matrix(statistics, now["loc"].double() - statistics["centre"])
    return scatter + statistics["total"][..., None, None] * now["loc spread"] if "loc spread" in now else scatter


def _floored(covariance: Tensor, floor: Tensor) -> Tensor:
    """Raise the eigenvalues of the covariance, each column in units of its floor, to at least one."""
    unit = floor.clamp_min(torch.finfo(floor.dtype).tiny).sqrt()
    scale = unit.unsqueeze(-1) * unit.unsqueeze(-2)
    relative = covariance / scale
    weighted = torch.isfinite(relative).flatten(1).all(-1)
    eye = torch.eye(unit.shape[-1]).to(relative)
    relative = torch.where(weighted[:, None, None], relative, 2 * eye)
    _, failed = torch.linalg.cholesky_ex(relative - eye)
    if bool((failed == 0).all()):
        return covariance
    values, vectors = torch.linalg.eigh(relative)
    raised = (vectors * values.clamp_min(1.0).unsqueeze(-2)) @ vectors.mT * scale
    return torch.where(((failed == 0) | ~weighted)[:, None, None], covariance, raised)


def _wishart_counts(prior: Any) -> tuple[Tensor, ...]:
    d = prior.event_shape[-1]
    floor = torch.zeros_like(prior.scale[..., 0])
    return prior.scale, prior.df + d + 1, floor


def _log_determinant_gap(q: Any) -> Tensor:
    r"""Half of :math:`\mathrm{E} \log |\Lambda| - \log |\mathrm{E} \Lambda|` of the precision."""
    d = q.event_shape[-1]
    halves = 0.5 * (q.df.unsqueeze(-1) - torch.arange(d, device=q.df.device))
    return 0.5 * (torch.digamma(halves).sum(-1) + d * math.log(2) - d * q.df.log())


LOC = Argument(
    "loc",
    lambda fn: compact(fn.loc, 1),
    _precision_weighted,
    lambda precision_sum, precision: torch.linalg.solve(precision, precision_sum),
    (View("loc"),),
    event_dim=1,
    same_cells=(lambda s, now: (s["sum"], s["total"].unsqueeze(-1)), ratio),
    conjugate={
        ("loc", dist.MultivariateNormal): Conjugate(
            lambda prior: ((prior.precision_matrix @ prior.loc.unsqueeze(-1)).squeeze(-1), prior.precision_matrix),
            lambda weighted, precision: dist.MultivariateNormal(
                torch.linalg.solve(precision, weighted), precision_matrix=precision
            ),
            lambda q: q.loc,
            lambda q: q.covariance_matrix,
        )
    },
    correct=lambda spread, now: -0.5 * (torch.linalg.inv(now["covariance_matrix"]) * spread).sum((-2, -1)),
)

COVARIANCE = Argument(
    "covariance_matrix",
    covariance_of,
    lambda s, now: (
        _expected_scatter(s, now),
        s["total"],
        s["floor"] * s["total"][..., None],
    ),
    lambda scatter, total, floor: _floored(scatter / total[..., None, None], floor / total[..., None]),
    (
        View("covariance_matrix", matrix="symmetric", scales=True),
        View("scale_tril", torch.linalg.cholesky, _gram, matrix="lower", given="scale_tril"),
        View("precision_matrix", torch.linalg.inv, torch.linalg.inv, matrix="symmetric", given="precision_matrix"),
    ),
    event_dim=2,
    conjugate={
        ("covariance_matrix", InverseWishart): Conjugate(
            _wishart_counts,
            lambda scatter, total, floor: InverseWishart(total - scatter.shape[-1] - 1, scatter),
            lambda q: q.scale / q.df[..., None, None],
            _log_determinant_gap,
        )
    },
    rescale=lambda sums, factor: (sums[0] / factor[..., None, None], sums[1], sums[2] / factor[..., None]),
)


# Columns whose products are made in one call: one for few columns; more where calls would cost more than the sums
# of a few products that are made twice.
GROUP = 4


@cache
def pairs_of_columns(d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns i and j of every product in the order they are written, and what a quadratic form has for them.

    A group of columns is multiplied by itself and all columns after it: products inside of a group come twice.
    """
    row, column, factor = [], [], []
    for start, stop in _groups(d):
        for i in range(start, stop):
            for j in range(start, d):
                row.append(i)
                column.append(j)
                factor.append(-0.5 if j < stop else -1.0)
    return torch.tensor(row), torch.tensor(column), torch.tensor(factor, dtype=torch.float64)


def _groups(d: int) -> list[tuple[int, int]]:
    step = GROUP if d >= 32 else 1
    return [(start, min(d, start + step)) for start in range(0, d, step)]


def write_pairs(value: Tensor, out: Tensor) -> None:
    """Products of pairs of columns, columns first."""
    position, d = 0, len(value)
    for start, stop in _groups(d):
        size = (stop - start) * (d - start)
        if stop - start == 1:
            torch.mul(value[start:], value[start], out=out[position : position + size])
            position += size
            continue
        block = out[position : position + size].view(stop - start, d - start, *value.shape[1:])
        torch.mul(value[start:stop].unsqueeze(1), value[start:].unsqueeze(0), out=block)
        position += size


@closed_form_of(torch.distributions.MultivariateNormal)
class _MultivariateNormal(ExponentialFamily):
    """By first and second moments, whatever the covariance is written as."""

    arguments: ClassVar[tuple[Argument, ...]] = (LOC, COVARIANCE)
    event_dim = 1

    def scale_tril(self, fn: Any) -> Tensor:
        """Cholesky factor of the covariance, not expanded."""
        return compact(fn.scale_tril, 2)

    first_is_value = True

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        d = fn.event_shape[0]
        return (d,), (len(pairs_of_columns(d)[0]),)

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        return spread(value, rows, keepdim)

    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        pairs = value.new_empty(self.trailing(fn)[1][0], *value.shape[1:])
        write_pairs(value, pairs)
        return value, pairs

    def fill(self, value: Tensor, fn: Any, reference: Reference | None, out: tuple[Tensor, ...]) -> None:
        out[0].copy_(value)
        write_pairs(out[0], out[1])

    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        loc, scale_tril = compact(fn.loc, 1).double(), self.scale_tril(fn).double()
        loc = loc if reference is None else loc - reference.centre
        d = loc.shape[-1]
        precision = torch.cholesky_inverse(scale_tril)
        first = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        row, column, factor = (t.to(loc.device) for t in pairs_of_columns(d))
        second = precision[..., row, column] * factor
        log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_normalizer = 0.5 * (first * loc).sum(-1) + log_det + 0.5 * d * math.log(2 * math.pi)
        return (first, second), log_normalizer

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        if reference is None:
            raise ValueError("MultivariateNormal: expected the reference that the statistics were gathered about.")
        first, pairs = sums
        d = first.shape[-1]
        row, column, _ = pairs_of_columns(d)
        square = pairs.new_empty(*pairs.shape[:-1], d, d)
        square[..., row, column] = pairs
        square[..., column, row] = pairs
        floor = (variance_floor * reference.variance).clamp_min(torch.finfo(fn.loc.dtype).tiny)
        return Statistics(
            total.shape,
            total=total,
            centre=reference.centre,
            centred_sum=first,
            sum=first + reference.centre * total.unsqueeze(-1),
            square=square,
            floor=floor.expand(*total.shape, -1),
        )
