"""The inverse-Wishart law of covariance matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, register_kl, transform_to

__all__ = ["InverseWishart"]


class _Covariance(constraints.Constraint):
    """Symmetric positive-definite matrices, with a bijection from vectors that has a log-determinant."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return constraints.positive_definite.check(value)


class _VectorToCovariance(Transform):
    r"""A vector fills a lower triangle row by row, its diagonal exponentiated: :math:`\Sigma = L L^\top`.

    :math:`|\partial\Sigma / \partial L| = 2^d \prod_i L_{ii}^{d - i + 1}`, and the exponential adds one more power.
    """

    domain = constraints.real_vector
    codomain = _Covariance()
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _VectorToCovariance)

    def __hash__(self) -> int:
        return hash(type(self))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        d = _side(shape[-1])
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        d = shape[-1]
        return torch.Size((*shape[:-2], d * (d + 1) // 2))

    def _factor(self, x: Tensor) -> Tensor:
        d = _side(x.shape[-1])
        row, column = torch.tril_indices(d, d, device=x.device)
        factor = x.new_zeros(*x.shape[:-1], d, d)
        factor[..., row, column] = x
        return factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        factor = factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        return factor[..., row, column]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        d = y.shape[-1]
        index = torch.arange(d, device=x.device)
        log_diagonal = x[..., index * (index + 3) // 2]
        powers = (d + 1 - index).to(x)
        return d * math.log(2.0) + (powers * log_diagonal).sum(-1)


def _side(length: int) -> int:
    return (math.isqrt(8 * length + 1) - 1) // 2


biject_to.register(_Covariance, lambda constraint: _VectorToCovariance())
transform_to.register(_Covariance, lambda constraint: _VectorToCovariance())


class InverseWishart(TorchDistribution):
    r"""Inverse-Wishart distribution, the conjugate prior of a normal's covariance matrix.

    .. math:: p(\Sigma) \propto |\Sigma|^{-(\nu + d + 1)/2} \exp\left(-\tfrac12 \mathrm{tr}(\Psi \Sigma^{-1})\right)

    ============  ==============================  ==============  ===========
    symbol        meaning                         shape           code
    ============  ==============================  ==============  ===========
    :math:`\nu`   degrees of freedom, > d - 1     batch           `df`
    :math:`\Psi`  scale matrix                    batch + (d, d)  `scale`
    ============  ==============================  ==============  ===========

    Its support comes with a bijection to real vectors, so NUTS and every autoguide can use it.

    Args:
        df: Degrees of freedom; the mean :math:`\Psi / (\nu - d - 1)` exists for `df > d + 1`.
        scale: Positive-definite matrix.
        validate_args: Check arguments and values.

    References:
        A. Gelman et al. (2013), Bayesian Data Analysis, third edition, appendix A.

    Example:
        >>> import torch, pyro_lvm as lvm
        >>> prior = lvm.distributions.InverseWishart(torch.tensor(5.0), torch.eye(2))
        >>> prior.mean
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """

    arg_constraints = {"df": constraints.positive, "scale": constraints.positive_definite}  # noqa: RUF012
    support = _Covariance()
    has_rsample = True

    def __init__(self, df: Tensor | float, scale: Tensor, validate_args: bool | None = None) -> None:
        df = torch.as_tensor(df, dtype=scale.dtype, device=scale.device)
        d = scale.shape[-1]
        batch = torch.broadcast_shapes(df.shape, scale.shape[:-2])
        self.df = df.expand(batch)
        self.scale = scale.expand(*batch, d, d)
        if validate_args is not False and not bool((df > d - 1).all()):
            raise ValueError(f"InverseWishart: expected df > {d - 1} for {d} x {d} matrices; got {df.min().item()}.")
        super().__init__(batch, torch.Size((d, d)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> InverseWishart:
        """The same law over a larger batch."""
        batch = torch.Size(batch_shape)
        return InverseWishart(self.df.expand(batch), self.scale.expand(*batch, *self.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, infinite or undefined (NaN) unless `df > d + 1`."""
        excess = self.df - self.event_shape[-1] - 1
        return torch.where((excess > 0)[..., None, None], self.scale / excess[..., None, None], torch.nan)

    @property
    def mode(self) -> Tensor:
        """The mode."""
        return self.scale / (self.df + self.event_shape[-1] + 1)[..., None, None]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, shape batch."""
        if self._validate_args:
            self._validate_sample(value)
        d = self.event_shape[-1]
        scale_factor = torch.linalg.cholesky(self.scale)
        factor = torch.linalg.cholesky(value)
        batch = torch.broadcast_shapes(factor.shape, scale_factor.shape)
        whitened = torch.linalg.solve_triangular(factor.expand(batch), scale_factor.expand(batch), upper=False)
        log_scale = scale_factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_value = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        half = 0.5 * self.df
        return (
            2 * half * log_scale
            - half * d * math.log(2.0)
            - torch.special.multigammaln(half, d)
            - (self.df + d + 1) * log_value
            - 0.5 * whitened.square().sum((-2, -1))
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws by Bartlett's decomposition of the Wishart law of the inverse, differentiable in `scale`."""
        shape = torch.Size((*sample_shape, *self.batch_shape))
        d = self.event_shape[-1]
        dof = (self.df.unsqueeze(-1) - torch.arange(d).to(self.df)).expand(*shape, d)
        chi = torch.distributions.Chi2(dof).rsample().sqrt()
        bartlett = self.scale.new_empty(*shape, d, d).normal_().tril(-1) + chi.diag_embed()
        # W = L A A' L' with L L' = inv(scale), so inv(W) = B B' with B = inv(A' L') = C inv(A)'
        root = torch.linalg.cholesky(self.scale).expand(*shape, d, d)
        flipped = torch.linalg.solve_triangular(bartlett, root.mT, upper=False).mT
        return flipped @ flipped.mT


@register_kl(InverseWishart, InverseWishart)  # type: ignore[untyped-decorator]
def _divergence(q: InverseWishart, p: InverseWishart) -> Tensor:
    """That of the Wishart laws of the precisions (torch's own for `Wishart` is wrong for batches), nats."""
    d = q.event_shape[-1]
    half_q, half_p = 0.5 * q.df, 0.5 * p.df
    expected_log = torch.digamma(half_q.unsqueeze(-1) - 0.5 * torch.arange(d).to(q.df)).sum(-1)
    trace = torch.linalg.solve(q.scale, p.scale).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (
        (half_q - half_p) * expected_log
        + torch.special.multigammaln(half_p, d)
        - torch.special.multigammaln(half_q, d)
        + half_p * (torch.linalg.slogdet(q.scale).logabsdet - torch.linalg.slogdet(p.scale).logabsdet)
        + half_q * (trace - d)
    )
