r"""The M-step of Student's t, multivariate or not, as a scale mixture of normals.

With a latent precision for every row, :math:`u \sim \mathrm{Gamma}(\nu/2, \nu/2)` and
:math:`x \mid u \sim \mathrm{Normal}(\mu, \Sigma / u)`, the row is Student's t. Given the row,

.. math::

    \mathrm{E}[u] = \frac{\nu + d}{\nu + \delta^2}, \qquad
    \mathrm{E}[\log u] = \psi\left(\frac{\nu + d}{2}\right) - \log\frac{\nu + \delta^2}{2}, \qquad
    \delta^2 = (x - \mu)^\top \Sigma^{-1} (x - \mu),

so location and scale are those of a normal whose rows weigh :math:`\mathrm{E}[u]` more, and the degrees of freedom
solve :math:`\log(\nu/2) - \psi(\nu/2) + 1 + \overline{\mathrm{E}[\log u] - \mathrm{E}[u]} = 0`. Since :math:`u` is
latent too, one M-step raises the expected log-density of the t law and does not maximise it.

References:
    D. Peel, G. McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10,
        equations 21 to 31.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families import (
    _floored,
    _gram,
    _precision_weighted,
    _ratio,
    _scatter,
    _scatter_matrix,
    _shapes,
    closed_form,
)
from pyro_lvm.infer.m_step import Argument, ClosedForm, Statistics, View
from pyro_lvm.ops.cells import Cells, compact, sum_to
from pyro_lvm.ops.moments import second_moment

__all__ = ["AugmentedForm"]

# Degrees of freedom are sought between these: fewer than the least have tails that no data show, and a row's density at
# the most differs from the normal's by less than 1e-4 nats within ten standard deviations.
LEAST, MOST = 1e-2, 1e8


class AugmentedForm(ClosedForm):
    """A closed form that integrates out a latent variable of its own.

    A step raises the expected log-density, as EM does, and is at rest only where that is flat.
    """


def _degrees_of_freedom(gap: Tensor, total: Tensor) -> Tensor:
    """Solve log(v/2) - digamma(v/2) + 1 + gap / total = 0, by bisection of log v: the left side falls in v."""
    target = -(1 + gap / total)
    low, high = torch.full_like(target, math.log(LEAST)), torch.full_like(target, math.log(MOST))
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = _excess(0.5 * middle.exp()) > target
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(total > 0, (0.5 * (low + high)).exp(), torch.nan)


def _excess(half: Tensor) -> Tensor:
    """log(a) - digamma(a), by its asymptotic series where the difference would cancel (error below 1e-17)."""
    a = half.clamp_min(1e3)
    series = (1 / (2 * a)) * (1 + 1 / (6 * a) * (1 - 1 / (10 * a.square())))
    return torch.where(half < 1e3, half.log() - torch.digamma(half), series)


def _row_terms(df: Tensor, distance: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Expected precision of every row, and the expectation of log precision minus precision."""
    precision = (df + d) / (df + distance)
    return precision, torch.digamma((df + d) / 2) - ((df + distance) / 2).log() - precision


_DF = Argument(
    "df",
    lambda fn: compact(fn.df),
    lambda s, now: (s["gap"], s["count"]),
    _degrees_of_freedom,
    (View("df"), View("log df", torch.log, torch.exp)),
)


class _StudentT(AugmentedForm):
    arguments = (
        Argument(
            "loc",
            lambda fn: compact(fn.loc),
            lambda s, now: (s["sum"] / now["squared scale"], s["total"] / now["squared scale"]),
            _ratio,
            (View("loc"),),
            same_cells=(lambda s, now: (s["sum"], s["total"]), _ratio),
        ),
        Argument(
            "squared scale",
            lambda fn: compact(fn.scale).square(),
            lambda s, now: (_scatter(s, now["loc"].double() - s["centre"]), s["count"], s["floor"] * s["count"]),
            lambda square, count, floor: torch.maximum(square, floor) / count,
            (
                View("scale", torch.sqrt, torch.square),
                View("squared scale"),
                View("log scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
            ),
        ),
        _DF,
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        loc, scale, df = compact(fn.loc).double(), compact(fn.scale).double(), compact(fn.df).double()
        full, cells = _shapes(fn, value, weights, loc, scale, df)
        value, weights = value.double(), weights.double()
        value = value.reshape((1,) * (len(full) - value.dim()) + tuple(value.shape))
        rows = [i for i, size in enumerate(cells) if size == 1]
        variance, centre = torch.var_mean(value, rows, correction=0, keepdim=True)
        precision, gap = _row_terms(df, ((value - loc) / scale).square(), 1)
        value, weighted = value - centre, weights * precision
        total, first = sum_to(cells, full, weighted), sum_to(cells, full, weighted, value)
        return Statistics(
            cells,
            count=sum_to(cells, full, weights),
            gap=sum_to(cells, full, weights, gap),
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total,
            square=sum_to(cells, full, weighted, value.square()),
            floor=(variance_floor * variance).clamp_min(torch.finfo(fn.loc.dtype).tiny).expand(cells),
        )


class _MultivariateStudentT(AugmentedForm):
    arguments = (
        Argument(
            "loc",
            lambda fn: compact(fn.loc, 1),
            lambda s, now: _precision_weighted(s, {"covariance_matrix": now["scale matrix"]}),
            lambda precision_sum, precision: torch.linalg.solve(precision, precision_sum),
            (View("loc"),),
            event_dim=1,
            same_cells=(lambda s, now: (s["sum"], s["total"].unsqueeze(-1)), _ratio),
        ),
        Argument(
            "scale matrix",
            lambda fn: _gram(compact(fn.scale_tril, 2)),
            lambda s, now: (
                _scatter_matrix(s, now["loc"].double() - s["centre"]),
                s["count"],
                s["floor"] * s["count"][..., None],
            ),
            lambda scatter, count, floor: _floored(scatter / count[..., None, None], floor / count[..., None]),
            (
                View("scale matrix", matrix="symmetric"),
                View("scale_tril", torch.linalg.cholesky, _gram, matrix="lower"),
            ),
            event_dim=2,
        ),
        _DF,
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        loc, scale_tril, df = compact(fn.loc, 1), compact(fn.scale_tril, 2), compact(fn.df)
        full, cells = _shapes(fn, value, weights, loc[..., 0], scale_tril[..., 0, 0], df, event_dim=1)
        variance, centre = torch.var_mean(value.reshape(-1, value.shape[-1]).double(), 0, correction=0)
        weights, df = weights.double(), df.double()
        distance = _distance(value.double(), loc.double(), scale_tril.double(), full)
        precision, gap = _row_terms(df, distance, value.shape[-1])
        total, first, second = second_moment(value, weights * precision, full, cells, centre)
        floor = variance_floor * variance.clamp_min(torch.finfo(fn.loc.dtype).tiny)
        return Statistics(
            cells,
            count=sum_to(cells, full, weights),
            gap=sum_to(cells, full, weights, gap),
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total.unsqueeze(-1),
            square=second,
            floor=floor.expand(*cells, -1),
        )


def _distance(value: Tensor, loc: Tensor, scale_tril: Tensor, full: torch.Size) -> Tensor:
    """Squared Mahalanobis distances, cell by cell, so that no matrix is copied for every row."""
    split = Cells.of(full, value, 1, (loc, 1), (scale_tril, 2))
    if split is None:
        deviation = (value - loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(scale_tril, deviation, upper=False).square().sum((-2, -1))
    cells = zip(*split.parameters, strict=True)
    white = (torch.linalg.solve_triangular(root, (split.rows - mean).T, upper=False) for mean, root in cells)
    return split.unflatten(torch.stack([w.square().sum(0) for w in white]))


closed_form.register(dist.MultivariateStudentT)(lambda fn, form=_MultivariateStudentT(): form)  # noqa: B008
closed_form.register(torch.distributions.StudentT)(lambda fn, form=_StudentT(): form)  # noqa: B008
