r"""Closed forms of normals whose covariance is :math:`W W^\top + \psi`: factor analysis inside the M-step.

Statistics are those of the multivariate normal; with them fixed, W and :math:`\psi` are moved by sweeps of EM over the
factors (`pyro_lvm.ops.factor_sweeps`), a fixed number of times: the expected log-likelihood rises, and is not at its
maximum yet. Where all arguments belong to the same blocks, all cells are swept at once. Where cells with different
:math:`\psi` share W, or share :math:`\psi` and have W of their own, they are taken in turn; a row of a shared W is a
least-squares solution weighted by :math:`1 / \psi`.

Two laws have such a covariance: `LowRankMultivariateNormal`, and `LinearGaussianRows`, whose rows may have gaps. Of
those the statistics are the expected ones given what is known.

References:
    D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47(1), equations 5 to 8.
    Z. Ghahramani, G. Hinton (1996), The EM algorithm for mixtures of factor analyzers, Toronto CRG-TR-96-1.
    G. McLachlan, D. Peel (2000), Mixtures of factor analyzers, ICML.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.distributions import LinearGaussianRows
from pyro_lvm.infer.families.multivariate_normal import LOC, _MultivariateNormal, scatter_matrix
from pyro_lvm.infer.families.normal import nonzero_variance
from pyro_lvm.infer.m_step import (
    Argument,
    ClosedForm,
    Conjugate,
    Joint,
    Statistics,
    View,
    closed_form_of,
)
from pyro_lvm.ops.cells import Cells, compact, sum_to
from pyro_lvm.ops.factor_sweeps import expanded_loadings, factor_moments, factor_sweeps
from pyro_lvm.ops.linear_gaussian_cells import each_moments, expected_moments
from pyro_lvm.ops.missing import column_moments

__all__: list[str] = []

SWEEPS = 20
# Where covariances do not fit into the cache a sweep costs as much as thousands of rows; with many columns it goes far.
FEW_SWEEPS, CACHE = 5, 1 << 20
Now = dict[str, Tensor]


def _covariance(factor: Tensor, diagonal: Tensor) -> Tensor:
    factor = factor.double()
    diagonal = diagonal.double().expand(*diagonal.shape[:-1], factor.shape[-2])
    return factor @ factor.mT + diagonal.diag_embed()


def _scatter(s: Statistics, loc: Tensor) -> Tensor:
    """Scatter matrices about the location, which stays where it is from the second sweep on."""
    if s.scatter is None or not torch.equal(s.scatter[0], loc):
        s.scatter = loc, scatter_matrix(s, loc - s["centre"])
    return s.scatter[1]


def _sweeps(matrices: Tensor) -> int:
    return SWEEPS if matrices.numel() <= CACHE else FEW_SWEEPS


def _arguments(
    factor: str,
    diagonal: str,
    read: Callable[[Any], Tensor],
    views: tuple[View, ...],
    conjugate: dict[tuple[str, type], Conjugate] | None = None,
) -> tuple[Argument, ...]:
    """Location, loadings and noise variances of a law that calls the last two `factor` and `diagonal`."""

    def moments(s: Statistics, now: Now) -> tuple[Tensor, Tensor, Tensor]:
        scatter = _scatter(s, now["loc"].double())
        return scatter, *factor_moments(scatter, now[factor].double(), now[diagonal].double(), s["total"])

    def precision_weighted(s: Statistics, now: Now) -> tuple[Tensor, ...]:
        return LOC.accumulate(s, {"covariance_matrix": _covariance(now[factor], now[diagonal])})

    def factor_sums(s: Statistics, now: Now) -> tuple[Tensor, ...]:
        _, cross, second = moments(s, now)
        precision = now[diagonal].double().reciprocal().expand(cross.shape[:-1])
        return cross * precision.unsqueeze(-1), second.unsqueeze(-3) * precision[..., None, None]

    def own_sums(s: Statistics, now: Now) -> tuple[Tensor, ...]:
        _, cross, second = moments(s, now)
        return cross / s["total"][..., None, None], second / s["total"][..., None, None]

    def diagonal_sums(s: Statistics, now: Now) -> tuple[Tensor, ...]:
        weight = now[factor].double()
        scatter, cross, second = moments(s, now)
        left = scatter.diagonal(dim1=-2, dim2=-1) - 2 * (weight * cross).sum(-1) + (weight @ second * weight).sum(-1)
        total = s["total"].unsqueeze(-1)
        found = left, total.expand_as(left), s["floor"] * total
        return found if now[diagonal].shape[-1] > 1 else tuple(part.sum(-1, keepdim=True) for part in found)

    return (
        replace(LOC, accumulate=precision_weighted),
        Argument(
            factor,
            lambda fn: compact(getattr(fn, factor), 2),
            factor_sums,
            _solve_factor,
            (View(factor),),
            event_dim=2,
            same_cells=(own_sums, lambda cross, second: expanded_loadings(cross, second)[1]),
        ),
        Argument(
            diagonal,
            read,
            diagonal_sums,
            lambda left, total, floor: torch.maximum(left, floor) / total,
            views,
            event_dim=1,
            conjugate=conjugate or {},
        ),
    )


def _solve_factor(cross: Tensor, second: Tensor) -> Tensor:
    solved, _ = torch.linalg.solve_ex(second, cross.unsqueeze(-1))
    return solved.squeeze(-1)


def _joint(factor: str, diagonal: str) -> Joint:
    """All arguments at once: the mean, and sweeps from where the loadings and the noise are."""
    names = ("loc", factor, diagonal)
    return Joint(names, lambda s: (s["total"], s["centred_sum"], s["square"], *_by_cell(s)), _swept, warm=True)


def _by_cell(s: Statistics) -> tuple[Tensor, Tensor]:
    total = s["total"].unsqueeze(-1)
    return s["centre"] * total, s["floor"] * total


def _swept(
    total: Tensor,
    first: Tensor,
    square: Tensor,
    centre: Tensor,
    floor: Tensor,
    loc: Tensor,
    weight: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    count = total.unsqueeze(-1)
    mean = first / count
    scatter = (square / count.unsqueeze(-1)).baddbmm_(mean.unsqueeze(-1), mean.unsqueeze(-2), alpha=-1)
    floor = floor / count if noise.shape[-1] > 1 else (floor / count).mean(-1, keepdim=True)
    return mean + centre / count, *factor_sweeps(scatter, weight.double(), noise.double(), floor, _sweeps(scatter))


@closed_form_of(torch.distributions.LowRankMultivariateNormal)
class _LowRank(_MultivariateNormal):
    arguments = _arguments(
        "cov_factor",
        "cov_diag",
        lambda fn: compact(fn.cov_diag, 1),
        (
            View("cov_diag"),
            View("log cov_diag", torch.log, torch.exp),
            View("noise scale", torch.sqrt, torch.square),
            View("log noise scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
        ),
        {
            ("cov_diag", dist.InverseGamma): Conjugate(
                lambda prior: (2 * prior.rate, 2 * prior.concentration + 2, torch.zeros_like(prior.rate))
            )
        },
    )
    joint = _joint("cov_factor", "cov_diag")
    sweeps = SWEEPS

    def passes(self, statistics: Statistics) -> int:
        return _sweeps(statistics["square"])

    def scale_tril(self, fn: Any) -> Tensor:
        """From the dense covariance."""
        return torch.linalg.cholesky(_covariance(compact(fn.cov_factor, 2), compact(fn.cov_diag, 1)))


@closed_form_of(LinearGaussianRows)
class _LinearGaussianRows(ClosedForm):
    arguments = _arguments(
        "weight",
        "noise",
        lambda fn: compact(fn.noise_scale, 1).square(),
        (
            View("noise scale", torch.sqrt, torch.square, given="noise_scale"),
            View("log noise scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
            View("noise"),
            View("log noise", torch.log, torch.exp),
        ),
    )
    joint = _joint("weight", "noise")
    sweeps = SWEEPS

    def passes(self, statistics: Statistics) -> int:
        return _sweeps(statistics["square"])

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        """Those of a normal; with gaps, what is expected of them."""
        loc, weight, noise = compact(fn.loc, 1), compact(fn.weight, 2), compact(fn.noise_scale, 1)
        batch, d = torch.broadcast_shapes(loc.shape[:-1], weight.shape[:-2], noise.shape[:-1]), loc.shape[-1]
        x = value.double()
        centre, variance = column_moments(x.reshape(-1, d))
        floor = (variance_floor * nonzero_variance(variance, centre)).clamp_min(torch.finfo(fn.loc.dtype).tiny)
        law = loc.double(), weight.double(), noise.double().square().expand(*noise.shape[:-1], d)
        full = torch.broadcast_shapes(fn.batch_shape, value.shape[:-1], weights.shape)
        shape = torch.Size((1,) * (len(full) - len(batch)) + tuple(batch))
        cells = Cells.of(full, x, 1, *zip(law, (1, 2, 1), strict=True))
        if cells is None:  # every row has a law of its own
            first, second = each_moments(*law, x, centre)
            share = weights.double()
            total = sum_to(shape, full, share)
            first = sum_to(torch.Size((*shape, d)), torch.Size((*full, d)), share.unsqueeze(-1), first)
            full = torch.Size((*full, d, d))
            second = sum_to(torch.Size((*shape, d, d)), full, share[..., None, None], second)
        else:
            table = cells.flatten(weights.double())
            laws = zip(*cells.parameters, table, strict=True)
            sums = [expected_moments(b, w, psi, cells.rows, row, centre) for b, w, psi, row in laws]
            first, second = (torch.stack(parts).unflatten(0, shape) for parts in zip(*sums, strict=True))
            total = table.sum(-1).reshape(shape)
        return Statistics(
            total.shape,
            total=total,
            centre=centre,
            centred_sum=first,
            sum=first + centre * total.unsqueeze(-1),
            square=second,
            floor=floor.expand(*total.shape, -1),
        )
