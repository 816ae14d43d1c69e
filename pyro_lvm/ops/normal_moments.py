r"""Counts, means and covariances of rows and of what normal latent vectors add to them, and points that have them.

Of rows :math:`x_n` that count :math:`w_n` times and have gaps, the means :math:`\mathrm{E}[y_n]` of
:math:`y_n = (h_n, x_n)` and the covariances within rows :math:`\mathrm{Var}[y_n]` given what is known make

.. math::

    \bar y = \tfrac1w \sum_n w_n \mathrm{E}[y_n], \qquad
    C = \tfrac1w \sum_n w_n \left( (\mathrm{E}[y_n] - \bar y) (\mathrm{E}[y_n] - \bar y)^\top
    + \mathrm{Var}[y_n] \right).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.linear_gaussian import LinearGaussian, Posterior

__all__ = ["NormalMoments"]

# Numbers of the roots of covariances within rows that are laid out at a time.
BLOCK_NUMBERS = 1 << 22


class NormalMoments(NamedTuple):
    """What an M-step of normal laws needs of rows.

    Attributes:
        total: How many rows there are, each counted as often as its weight says, shape ().
        mean: Shape (d,).
        covariance: By the number of rows, shape (d, d).
    """

    total: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of_rows(cls, x: Tensor, counts: Tensor | None) -> NormalMoments:
        """Those of complete rows.

        Args:
            x: Shape (n, d).
            counts: How often each row counts, shape (n,); once if None.
        """
        total = x.new_tensor(len(x)) if counts is None else counts.sum()
        mean = x.mean(0) if counts is None else counts @ x / total
        rest = x - mean
        weighted = rest if counts is None else rest * counts.unsqueeze(-1)
        return cls(total, mean, weighted.mT @ rest / total)

    @classmethod
    def of_law(cls, law: LinearGaussian, total: Tensor) -> NormalMoments:
        """Those that a program expects of latent vectors and rows together.

        Args:
            law: Of the rows.
            total: How many rows there are, shape ().
        """
        cross = law.weight * law.prior_variance
        top = torch.cat([law.prior_variance.diag(), cross.mT], 1)
        covariance = torch.cat([top, torch.cat([cross, law.covariance], 1)])
        return cls(total, torch.cat([law.prior_loc, law.mean]), covariance)

    @classmethod
    def of_posterior(cls, law: LinearGaussian, x: Tensor, found: Posterior, counts: Tensor | None) -> NormalMoments:
        """Those of latent vectors and rows together, shape (k + d,) and (k + d, k + d).

        Args:
            law: Of the rows.
            x: Shape (n, d), NaN where unknown.
            found: The posterior of the latent vectors.
            counts: How often each row counts, shape (n,); once if None.
        """
        unknown = x.isnan()
        filled = torch.where(unknown, law.loc + found.loc @ law.weight.mT, x)
        means = cls.of_rows(torch.cat([found.loc, filled], 1), counts)
        return means._replace(covariance=means.covariance + _within(law, unknown, found, counts) / means.total)

    def points(self) -> Tensor:
        """Points with this mean and covariance, all counting alike, shape (2 d, d)."""
        scale = self.covariance.diagonal().sqrt()
        unit = torch.where(scale > 0, scale, 1.0)
        values, vectors = torch.linalg.eigh(self.covariance / unit / unit.unsqueeze(-1))
        root = unit.unsqueeze(-1) * vectors * values.clamp_min(0).sqrt()
        steps = root.mT * len(scale) ** 0.5
        return torch.cat([self.mean + steps, self.mean - steps])


def _within(law: LinearGaussian, unknown: Tensor, found: Posterior, counts: Tensor | None) -> Tensor:
    """The sum over rows of the covariance of latent vector and row given what is known of it."""
    d, k = law.weight.shape
    rows = torch.bincount(found.pattern, weights=counts, minlength=len(found.covariance)).to(law.weight)
    total = law.weight.new_zeros(k + d, k + d)
    total[:k, :k] = (rows @ found.covariance.flatten(1)).reshape(k, k)
    if not bool(unknown.any()):
        return total
    missing = law.weight.new_zeros(len(rows), d)
    missing[found.pattern] = unknown.to(missing)
    parts = missing * rows.unsqueeze(-1)
    by_column = (parts.mT @ found.covariance.flatten(1)).unflatten(-1, (k, k))  # sums where that column is missing
    total[k:, :k] = (law.weight.unsqueeze(-2) @ by_column).squeeze(-2)
    total[:k, k:] = total[k:, :k].mT
    for part in torch.arange(len(rows), device=rows.device).split(max(1, BLOCK_NUMBERS // (d * k))):
        root = (law.weight @ found.scale_tril[part]) * missing[part].unsqueeze(-1) * rows[part, None, None].sqrt()
        table = root.movedim(1, 0).flatten(1)
        total[k:, k:] += table @ table.mT
    total[k:, k:] += (law.noise * parts.sum(0)).diag()
    return total
