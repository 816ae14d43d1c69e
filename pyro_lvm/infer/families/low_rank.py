r"""Closed form of the LowRankMultivariateNormal family: factor analysis inside the M-step.

With covariance :math:`W W^\top + D`, D diagonal, and S the scatter matrix about the location per unit of weight, one
step of EM over the factors of factor analysis is

.. math::

    \beta = W^\top (W W^\top + D)^{-1}, \quad M = I - \beta W + \beta S \beta^\top, \quad
    W' = S \beta^\top M^{-1}, \quad D' = \operatorname{diag}(S - 2 W' \beta S + W' M W'^\top)

taken for W and D in turn, a fixed number of times: the expected log-likelihood rises, and is not at its maximum yet.
Where cells with different D share W, each of its rows is a least-squares solution weighted by 1 / D.

References:
    D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47(1), equations 5 to 8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.infer.families.multivariate_normal import LOC, _MultivariateNormal, scatter_matrix
from pyro_lvm.infer.m_step import Argument, Conjugate, Statistics, View, closed_form_of
from pyro_lvm.ops.cells import compact

__all__: list[str] = []


def _covariance(factor: Tensor, diagonal: Tensor) -> Tensor:
    factor = factor.double()
    return factor @ factor.mT + diagonal.double().diag_embed()


def _moments(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Scatter about the location, its product with the factors' means, and the factors' second moments; all sums."""
    factor, total = now["cov_factor"].double(), s["total"][..., None, None]
    scatter = scatter_matrix(s, now["loc"].double() - s["centre"])
    beta = torch.cholesky_solve(factor, torch.linalg.cholesky(_covariance(factor, now["cov_diag"]))).mT
    cross = scatter @ beta.mT
    eye = torch.eye(factor.shape[-1]).to(factor)
    return scatter, cross, total * (eye - beta @ factor) + beta @ cross


def _factor_sums(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    _, cross, second = _moments(s, now)
    precision = now["cov_diag"].double().reciprocal()
    return cross * precision.unsqueeze(-1), second.unsqueeze(-3) * precision[..., None, None]


def _diagonal_sums(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    factor = now["cov_factor"].double()
    scatter, cross, second = _moments(s, now)
    residual = scatter.diagonal(dim1=-2, dim2=-1) - 2 * (factor * cross).sum(-1) + (factor @ second * factor).sum(-1)
    return residual, s["total"].unsqueeze(-1), s["floor"] * s["total"].unsqueeze(-1)


def _solve_factor(cross: Tensor, second: Tensor) -> Tensor:
    solved, _ = torch.linalg.solve_ex(second, cross.unsqueeze(-1))
    return solved.squeeze(-1)


def _precision_weighted(s: Statistics, now: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return LOC.accumulate(s, {"covariance_matrix": _covariance(now["cov_factor"], now["cov_diag"])})


@closed_form_of(torch.distributions.LowRankMultivariateNormal)
class _LowRank(_MultivariateNormal):
    arguments = (
        replace(LOC, accumulate=_precision_weighted),
        Argument(
            "cov_factor",
            lambda fn: compact(fn.cov_factor, 2),
            _factor_sums,
            _solve_factor,
            (View("cov_factor"),),
            event_dim=2,
        ),
        Argument(
            "cov_diag",
            lambda fn: compact(fn.cov_diag, 1),
            _diagonal_sums,
            lambda residual, total, floor: torch.maximum(residual, floor) / total,
            (
                View("cov_diag"),
                View("log cov_diag", torch.log, torch.exp),
                View("noise scale", torch.sqrt, torch.square),
                View("log noise scale", lambda v: 0.5 * v.log(), lambda v: (2 * v).exp()),
            ),
            event_dim=1,
            conjugate={
                ("cov_diag", dist.InverseGamma): Conjugate(
                    lambda prior: (
                        2 * prior.rate,
                        2 * prior.concentration + 2,
                        torch.zeros_like(prior.rate),
                    )
                )
            },
        ),
    )
    sweeps = 20

    def scale_tril(self, fn: Any) -> Tensor:
        """From the dense covariance."""
        return torch.linalg.cholesky(_covariance(compact(fn.cov_factor, 2), compact(fn.cov_diag, 1)))
