r"""Sums that the bound of an autoencoder is made of, each one step of differentiation, in less time than by parts.

.. math::

    \sum \mathrm{KL}(\mathrm{Normal}(m, s^2) \,\|\, \mathrm{Normal}(a, b^2))
    &= \sum \tfrac12 (d^2 + r^2 - 1) - \log r, \qquad d = (m - a) / b, \quad r = s / b \\
    -\sum \log \mathrm{Bernoulli}(x; \mathrm{sigmoid}(f)) &= \sum \log(1 + e^f) - x f
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pyro_lvm.ops.softplus_rests import softplus_rests

__all__ = ["bernoulli_cost", "normal_divergence", "standard_divergence"]


class _NormalDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        d, r = (m - a) / b, s / b
        ctx.save_for_backward(d, r, b)
        squares = d.flatten().dot(d.flatten()) + r.flatten().dot(r.flatten())
        return 0.5 * (squares - r.numel()) - r.log().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        d, r, b = ctx.saved_tensors
        unit, (of_m, of_s, of_a, of_b) = gradient / b, ctx.needs_input_grad
        return (
            d * unit if of_m else None,
            (r - r.reciprocal()) * unit if of_s else None,
            -d * unit if of_a else None,
            (1 - d * d - r * r) * unit if of_b else None,
        )


class _BernoulliCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor) -> Tensor:
        probs = logits.sigmoid()
        ctx.save_for_backward(probs, values)
        wrong = logits.clamp_min(0).addcmul_(logits, values, value=-1)  # max(f, 0) - x f >= 0: sums lose nothing
        return wrong.sum() + softplus_rests(probs.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probs, values = ctx.saved_tensors
        return probs.sub_(values).mul_(gradient), None  # no memory but what was kept; a second pass is refused


def normal_divergence(q: Any, p: Any) -> Tensor:
    """The sum of the divergences of normal laws from others, nats, scalar; it can be differentiated once.

    Args:
        q: A normal distribution.
        p: Another, of the same batch shape.
    """
    return _NormalDivergence.apply(q.loc, q.scale, p.loc, p.scale)


def standard_divergence(q: Any) -> Tensor:
    """The sum of the divergences of normal laws from the standard one, nats, scalar.

    Args:
        q: A normal distribution.
    """
    m, s = q.loc, q.scale
    return (0.5 * (m * m + s * s - 1) - s.log()).sum()


def bernoulli_cost(logits: Tensor, values: Tensor) -> Tensor:
    """Minus the sum of log-probabilities of zeros and ones, nats, scalar; it can be differentiated once.

    Args:
        logits: Log-odds of ones.
        values: Zeros and ones, of the same shape and type; constants.
    """
    return _BernoulliCost.apply(logits, values)
