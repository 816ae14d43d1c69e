r"""The M-step of Student's t, multivariate or not, as a scale mixture of normals.

With a latent precision for every row, :math:`u \sim \mathrm{Gamma}(\nu/2, \nu/2)` and
:math:`x \mid u \sim \mathrm{Normal}(\mu, \Sigma / u)`, the row is Student's t. Given the row,

.. math::

    \mathrm{E}[u] = \frac{\nu + d}{\nu + \delta^2}, \qquad
    \mathrm{E}[\log u] = \psi\left(\frac{\nu + d}{2}\right) - \log\frac{\nu + \delta^2}{2}, \qquad
    \delta^2 = (x - \mu)^\top \Sigma^{-1} (x - \mu),

so location and scale are those of a normal whose rows weigh :math:`\mathrm{E}[u]` more, and the degrees of freedom
solve :math:`\log(\nu/2) - \psi(\nu/2) + 1 + \overline{\mathrm{E}[\log u] - \mathrm{E}[u]} = 0`. Since :math:`u` is
latent too, one M-step raises the expected log-density of the t law and does not maximise it; by that equation the
degrees of freedom creep. Where the rows are at hand they are found by the t law itself instead, at the new location
and scale (ECME): u is then no latent variable of theirs, and the expected log-density rises all the same.

References:
    D. Peel, G. McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing 10,
        equations 21 to 31.
    C. Liu, D. Rubin (1994), The ECME algorithm: a simple extension of EM and ECM with faster monotone convergence,
        Biometrika 81(4). (1995), ML estimation of the t distribution using EM and its extensions, Statistica Sinica 5.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.multivariate_normal import COVARIANCE
from pyro_lvm.infer.families.multivariate_normal import LOC as MULTIVARIATE_LOC
from pyro_lvm.infer.families.normal import LOC, VARIANCE
from pyro_lvm.infer.m_step import Argument, ClosedForm, Statistics, View, closed_form, closed_form_of
from pyro_lvm.ops.cells import Cells, compact, sum_to

__all__ = ["AugmentedForm"]

# Fewer degrees of freedom than this have tails that no data show.
LEAST = 1e-2
# With more than this a t law is the normal but for a total variation of 0.31 / df < 0.002, and single precision shows
# rounding in its normaliser, eps df log df: eps^(-1/3) for both precisions alike.
MOST = 200.0
# Steps of log df at which the slope is looked at: fine near by, so that a maximum is found to its square.
LADDER = (-3.0, -0.5, -0.05, 0.0, 0.05, 0.5, 3.0)


class AugmentedForm(ClosedForm):
    """A closed form that integrates out a latent variable of its own.

    A step raises the expected log-density, as EM does, and is at rest only where that is flat.
    """


def _most(df: Tensor) -> Tensor:
    """The most degrees of freedom; those there are already."""
    return df.double().clamp_min(MOST)


def _degrees_of_freedom(gap: Tensor, total: Tensor, most: Tensor) -> Tensor:
    """Solve log(v/2) - digamma(v/2) + 1 + gap / total = 0, by bisection of log v: the left side falls in v."""
    target = -(1 + gap / total)
    low, high = torch.full_like(target, math.log(LEAST)), (most / total).log()
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


def _of_weighted_normal(
    normal: Any, df: Tensor, distance: Tensor, value: Tensor, weights: Tensor, variance_floor: float
) -> Statistics:
    """Statistics of a normal whose rows weigh their expected precision more, and those of the degrees of freedom."""
    event = len(normal.event_shape)
    precision, gap = _row_terms(df.double(), distance, math.prod(normal.event_shape))
    found = closed_form(normal).statistics(normal, value, weights * precision, variance_floor)  # type: ignore[union-attr]
    full = torch.broadcast_shapes(normal.batch_shape, value.shape[: value.dim() - event], weights.shape)
    count = sum_to(found.cells, full, weights)
    most = count * _most(df)
    gap = sum_to(found.cells, full, weights, gap)
    return Statistics(found.cells, (normal, value, weights), **found, count=count, gap=gap, most=most)


def _slopes(statistics: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Derivatives of the expected log-density by log v on a ladder about the present v; counts; count times v, most."""
    normal, value, weights = statistics.rows  # type: ignore[misc]
    df, d = now["df"].double(), math.prod(normal.event_shape)
    full = torch.broadcast_shapes(normal.batch_shape, value.shape[: value.dim() - len(normal.event_shape)])
    if "scale matrix" in now:
        distance = _distance(
            value.double(), now["loc"].double(), torch.linalg.cholesky(now["scale matrix"]).double(), full
        )
    else:
        distance = (value.double() - now["loc"]).square() / now["squared scale"]
    found = []
    for step in LADDER:
        v = _rung(df, step, _most(df))
        slope = torch.digamma((v + d) / 2) - torch.digamma(v / 2) - d / v - torch.log1p(distance / v)
        slope = 0.5 * v * (slope + (v + d) / v * distance / (v + distance))
        found.append(sum_to(statistics.cells, full, weights, slope))
    count = statistics["count"]
    return torch.stack(found, -1), count, count * df, statistics["most"]


def _rung(df: Tensor, step: float, most: Tensor) -> Tensor:
    return (df * math.exp(step)).clamp_min(LEAST).minimum(most)


def _climb(slopes: Tensor, total: Tensor, df: Tensor, most: Tensor) -> Tensor:
    """Where the slope first vanishes uphill of the present degrees of freedom, linear between rungs; else the last."""
    df, most, half = df / total, most / total, len(LADDER) // 2
    rungs = torch.stack([_rung(df, step, most).log() for step in LADDER], -1)
    down = slopes[..., half : half + 1] < 0
    rungs = torch.where(down, rungs.flip(-1), rungs)[..., half:]
    slopes = torch.where(down, -slopes.flip(-1), slopes)[..., half:]
    over = (slopes <= 0).double()
    last = torch.where(over.any(-1), over.argmax(-1), half).clamp_min(1).unsqueeze(-1)
    (low, high), (a, b) = ((t.gather(-1, last - 1), t.gather(-1, last)) for t in (rungs, slopes))
    share = torch.where(b < 0, a / (a - b), 1.0)
    return torch.where(total > 0, (low + share * (high - low)).squeeze(-1).exp(), torch.nan)


_DF = Argument(
    "df",
    lambda fn: compact(fn.df),
    lambda s, now: (s["gap"], s["count"], s["most"]),
    _degrees_of_freedom,
    (View("df"), View("log df", torch.log, torch.exp)),
    late=(_slopes, _climb),
)


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.mT


@closed_form_of(torch.distributions.StudentT)
class _StudentT(AugmentedForm):
    arguments = (
        Argument(
            "loc",
            LOC.read,
            lambda s, now: LOC.accumulate(s, {"variance": now["squared scale"]}),
            LOC.solve,
            LOC.views,
            same_cells=LOC.same_cells,
        ),
        Argument(
            "squared scale",
            VARIANCE.read,
            lambda s, now: (VARIANCE.accumulate(s, now)[0], s["count"], s["floor"] * s["count"]),
            VARIANCE.solve,
            (
                View("scale", torch.sqrt, torch.square),
                View("squared scale"),
                View("log scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
            ),
        ),
        _DF,
    )

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        scale, df = compact(fn.scale), compact(fn.df)
        loc = compact(fn.loc) + torch.zeros_like(df)  # cells of all arguments
        distance = ((value - loc) / scale).double().square()
        normal = dist.Normal(loc, scale, validate_args=False)
        return _of_weighted_normal(normal, df, distance, value, weights.double(), variance_floor)


@closed_form_of(dist.MultivariateStudentT)
class _MultivariateStudentT(AugmentedForm):
    arguments = (
        Argument(
            "loc",
            MULTIVARIATE_LOC.read,
            lambda s, now: MULTIVARIATE_LOC.accumulate(s, {"covariance_matrix": now["scale matrix"]}),
            MULTIVARIATE_LOC.solve,
            MULTIVARIATE_LOC.views,
            event_dim=1,
            same_cells=MULTIVARIATE_LOC.same_cells,
        ),
        Argument(
            "scale matrix",
            lambda fn: _gram(compact(fn.scale_tril, 2)),
            lambda s, now: (COVARIANCE.accumulate(s, now)[0], s["count"], s["floor"] * s["count"][..., None]),
            COVARIANCE.solve,
            (
                View("scale matrix", matrix="symmetric"),
                View("scale_tril", torch.linalg.cholesky, _gram, matrix="lower"),
            ),
            event_dim=2,
        ),
        _DF,
    )

    def score(self, fn: Any, value: Tensor) -> Tensor | None:
        """Cell by cell: `log_prob` copies a matrix for every row."""
        scale_tril, df, loc = compact(fn.scale_tril, 2), compact(fn.df), compact(fn.loc, 1)
        d = fn.event_shape[0]
        distance = _distance(value, loc, scale_tril, torch.broadcast_shapes(fn.batch_shape, value.shape[:-1]))
        log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_normalizer = torch.lgamma(0.5 * df) - torch.lgamma(0.5 * (df + d)) + 0.5 * d * (math.pi * df).log()
        return -0.5 * (df + d) * torch.log1p(distance / df) - (log_normalizer + log_det)

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        scale_tril, df = compact(fn.scale_tril, 2), compact(fn.df)
        loc = compact(fn.loc, 1) + torch.zeros_like(df).unsqueeze(-1)  # cells of all arguments
        normal = dist.MultivariateNormal(loc, scale_tril=scale_tril, validate_args=False)
        full = torch.broadcast_shapes(normal.batch_shape, value.shape[:-1])
        distance = _distance(value.double(), loc.double(), scale_tril.double(), full)
        return _of_weighted_normal(normal, df, distance, value, weights.double(), variance_floor)


def _distance(value: Tensor, loc: Tensor, scale_tril: Tensor, full: torch.Size) -> Tensor:
    """Squared Mahalanobis distances, cell by cell, so that no matrix is copied for every row."""
    split = Cells.of(full, value, 1, (loc, 1), (scale_tril, 2))
    if split is None:
        deviation = (value - loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(scale_tril, deviation, upper=False).square().sum((-2, -1))
    cells = zip(*split.parameters, strict=True)
    white = (torch.linalg.solve_triangular(root, (split.rows - mean).T, upper=False) for mean, root in cells)
    return split.unflatten(torch.stack([w.square().sum(0) for w in white]))
