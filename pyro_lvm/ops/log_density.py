r"""Log-densities of many rows under few parameter cells, as matrix products.

A distribution whose parameters vary over `c` cells (mixture components, hidden states) and whose value varies over
`n` rows has a log-density of shape `(c, n)`. Evaluated by broadcasting it needs `c * n * d` numbers; in natural
parameters it is one product of an `(n, features)` matrix with a `(features, c)` matrix.

Products run in float64 about a common centre, so that float32 data lose nothing to cancellation.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.ops.cells import Cells, compact

__all__ = ["log_density"]

# Rows of one block: keeps the (rows, cells, d) intermediate of a block within the cache of one core.
BLOCK_NUMBERS = 1 << 18


def log_density(fn: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`fn.log_prob(value)`, by matrix products where `fn` has few parameter cells and `value` many rows.

    Args:
        fn: A Pyro distribution.
        value: Shape broadcastable to `fn.batch_shape + fn.event_shape`.
        args: Passed on to `fn.log_prob`.
        kwargs: Passed on to `fn.log_prob`.

    Returns:
        Log-density of shape `fn.batch_shape` broadcast with the batch shape of `value`, nats.
    """
    if args or kwargs or torch.is_grad_enabled():
        return fn.log_prob(value, *args, **kwargs)
    fast = _by_products(fn, value)
    if fast is None:
        return fn.log_prob(value)
    fn._validate_sample(value) if fn._validate_args else None
    return fast


@singledispatch
def _by_products(fn: Any, value: Tensor) -> Tensor | None:
    return None


@_by_products.register
def _(fn: dist.MultivariateNormal, value: Tensor) -> Tensor | None:
    loc, scale_tril = compact(fn.loc, 1), compact(fn.scale_tril, 2)
    cells = Cells.of(fn.batch_shape, value, 1, (loc, 1), (scale_tril, 2))
    if cells is None:
        return None
    (loc, scale_tril), x = cells.parameters, cells.rows
    d = x.shape[-1]
    inverse = torch.linalg.solve_triangular(scale_tril, torch.eye(d).to(scale_tril), upper=False)
    # whitened = (x - loc) @ inverse.T for all cells at once: one (rows, d) @ (d, cells * d) product per block
    centre = loc.mean(0)
    projection = inverse.reshape(-1, d).T
    offset = (inverse @ (loc - centre).unsqueeze(-1)).reshape(-1)
    x = x - centre
    out = x.new_empty(cells.num_cells, len(x))
    for start in range(0, len(x), block := max(1, BLOCK_NUMBERS // offset.numel())):
        whitened = torch.addmm(-offset, x[start : start + block], projection)
        out[:, start : start + block] = whitened.square_().reshape(-1, cells.num_cells, d).sum(-1).T
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    out.mul_(-0.5).sub_((0.5 * d * math.log(2 * math.pi) + log_det).unsqueeze(-1))
    return cells.unflatten(out)


@_by_products.register
def _(fn: dist.Independent, value: Tensor) -> Tensor | None:
    base = fn.base_dist
    if type(base) is not dist.Normal or fn.reinterpreted_batch_ndims != 1:
        return None
    loc, scale = compact(base.loc, 1), compact(base.scale, 1)
    cells = Cells.of(fn.batch_shape, value, 1, (loc, 1), (scale, 1))
    if cells is None:
        return None
    d = max(cells.rows.shape[-1], fn.event_shape[0])
    loc, scale, x = (t.double().expand(-1, d) for t in (*cells.parameters, cells.rows))
    centre = loc.mean(0)
    x, loc = x - centre, loc - centre
    precision = scale.square().reciprocal()
    constant = (0.5 * precision * loc.square() + scale.log()).sum(-1) + 0.5 * d * math.log(2 * math.pi)
    out = torch.addmm(-constant.unsqueeze(-1), precision * loc, x.T)
    out.addmm_(precision, x.square_().T, alpha=-0.5)
    return cells.unflatten(out.to(value.dtype))
