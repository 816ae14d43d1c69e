r"""Rows that are an affine map of normal vectors, with independent normal noise: everything in closed form.

.. math::

    h_n \sim \mathrm{Normal}(m, P), \qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, R), \qquad
    P, R \; \mathrm{diagonal}

By Woodbury's identity all of it takes k x k matrices only. With :math:`o` the known entries of a row,

.. math::

    M = P^{-1} + W_o^\top R_o^{-1} W_o, \quad
    h_n \mid x_n \sim \mathrm{Normal}(m + M^{-1} W_o^\top R_o^{-1} (x_{n,o} - b_o - W_o m), M^{-1}), \\
    -2 \log p(x_n) = |o| \log 2\pi + \log |R_o| + \log |P| + \log |M| + \delta^\top R_o^{-1} \delta - g^\top M^{-1} g.

References:
    D. Rubin, D. Thayer (1982), EM algorithms for ML factor analysis, Psychometrika 47.
    C. Bishop (2006), Pattern Recognition and Machine Learning, section 12.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.factor_parts import signs

__all__ = ["LinearGaussian", "Posterior", "principal_parts"]


class Posterior(NamedTuple):
    """Normal laws of the latent vectors of rows, and how likely the rows are.

    Attributes:
        loc: Means, shape (n, k).
        covariance: By pattern of known entries, shape (patterns, k, k).
        scale_tril: Cholesky factors of it.
        pattern: Which pattern each row has, shape (n,).
        log_likelihood: Log p(x) of every row, nats, shape (n,).
    """

    loc: Tensor
    covariance: Tensor
    scale_tril: Tensor
    pattern: Tensor
    log_likelihood: Tensor


class LinearGaussian(NamedTuple):
    """The numbers of a program whose rows are an affine map of a normal vector.

    Attributes:
        loc: b, shape (d,).
        weight: W, shape (d, k).
        noise: R, the variances of the rows given h, shape (d,).
        prior_loc: m, shape (k,).
        prior_variance: P, shape (k,).
    """

    loc: Tensor
    weight: Tensor
    noise: Tensor
    prior_loc: Tensor
    prior_variance: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, shape (d,)."""
        return self.loc + self.weight @ self.prior_loc

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows, shape (d, d)."""
        return (self.weight * self.prior_variance) @ self.weight.mT + self.noise.diag()

    def posterior(self, x: Tensor) -> Posterior:
        """The laws of latent vectors given rows.

        Args:
            x: Rows, shape (n, d), NaN where unknown.
        """
        unknown = x.isnan()
        if not bool(unknown.any()):
            patterns, pattern = unknown.new_ones(1, x.shape[1]), unknown.new_zeros(len(x), dtype=torch.long)
        else:
            patterns, pattern = torch.unique(~unknown, dim=0, return_inverse=True)
        known = patterns.to(self.weight.dtype)
        residual = torch.where(unknown, 0.0, x - self.mean)
        gain = self.weight / self.noise.unsqueeze(-1)
        k = self.weight.shape[1]
        products = (gain.unsqueeze(-1) * self.weight.unsqueeze(-2)).flatten(1)  # of the rows of W, (d, k * k)
        precision = (known @ products).unflatten(-1, (k, k)) + self.prior_variance.reciprocal().diag()
        factor = torch.linalg.cholesky(precision)
        covariance = torch.cholesky_inverse(factor)
        signal = residual @ gain
        shift = (covariance[pattern] @ signal.unsqueeze(-1)).squeeze(-1) if len(known) > 1 else signal @ covariance[0]
        log_det = known @ (2 * math.pi * self.noise).log() + self.prior_variance.log().sum()
        log_det = log_det + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # the same as with g' M^-1 g taken away, as a sum of squares: nothing cancels where noise is small
        rest = torch.where(unknown, 0.0, residual - shift @ self.weight.mT)
        distance = (rest.square() / self.noise).sum(-1) + (shift.square() / self.prior_variance).sum(-1)
        return Posterior(
            self.prior_loc + shift,
            covariance,
            torch.linalg.cholesky(covariance),
            pattern,
            -0.5 * (log_det[pattern] + distance),
        )


def principal_parts(covariance: Tensor, num_factors: int) -> tuple[Tensor, Tensor]:
    r"""The most probable map and noise variance of probabilistic PCA.

    :math:`\sigma^2` is the mean of the smallest eigenvalues, and :math:`W = U (\Lambda - \sigma^2)^{1/2}`; the sign of
    each column is such that its entry of largest size is positive.

    Args:
        covariance: Shape (d, d).
        num_factors: k <= d.

    Returns:
        W of shape (d, k), and the variance, shape ().

    References:
        M. Tipping, C. Bishop (1999), Probabilistic principal component analysis, JRSS B 61, equations 7 and 8.
    """
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance.double()))
    rest = values[num_factors:].clamp_min(0)
    noise = rest.mean() if len(rest) else values[-1].clamp_min(0) / 2
    noise = noise.clamp_min(1e-6 * values.clamp_min(0).mean())
    weight = vectors[:, :num_factors] * (values[:num_factors] - noise).clamp_min(0).sqrt()
    return (weight * signs(weight)).to(covariance), noise.to(covariance)
