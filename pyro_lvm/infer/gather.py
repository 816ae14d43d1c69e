"""Expected sufficient statistics under any weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.m_step import ExponentialFamily, Reference, Statistics, closed_form, unwrap
from pyro_lvm.infer.natural import Kernel
from pyro_lvm.ops.cells import sum_to

__all__ = ["gather"]


def gather(
    fn: Any,
    value: Tensor,
    weights: Tensor,
    variance_floor: float,
    known: Reference | None = None,
    remember: Callable[[Reference | None], None] | None = None,
) -> Statistics:
    """Expected sufficient statistics of a site under any weights, in float64.

    Args:
        fn: The site's distribution, of an exponential family, wrapped or not.
        value: Shape broadcastable to the batch + event.
        weights: Broadcastable to the batch.
        variance_floor: Smallest variance allowed, relative to that of the value.
        known: Where values lie, if known.
        remember: Is told where values lie.
    """
    kernel = Kernel.of(fn, value, None, known)
    if kernel is not None and torch.broadcast_shapes(weights.shape, kernel.cells.shape) == kernel.cells.shape:
        if remember is not None:
            remember(kernel.reference)
        return kernel.gather(weights, variance_floor)
    return _gather_dense(*unwrap(fn, weights), value, variance_floor, known, remember)


def _gather_dense(
    fn: Any,
    weights: Tensor,
    value: Tensor,
    variance_floor: float,
    known: Reference | None,
    remember: Callable[[Reference | None], None] | None,
) -> Statistics:
    """The same where the value varies from cell to cell: statistics of all values at once."""
    family = closed_form(fn)
    if not isinstance(family, ExponentialFamily):
        raise TypeError(f"gather: expected an exponential family; got {type(fn).__name__}.")
    event, trailing = family.event_dim, family.trailing(fn)
    natural, log_normalizer = family.natural(fn, None)
    shapes = [eta.shape[: eta.dim() - len(t)] for eta, t in zip(natural, trailing, strict=True)]
    full = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - event], weights.shape)
    found = torch.broadcast_shapes(log_normalizer.shape, *shapes)
    cells = torch.Size((1,) * (len(full) - len(found)) + tuple(found))
    value = value.reshape((1,) * (len(full) + event - value.dim()) + tuple(value.shape)).double()
    rows = tuple(d for d, size in enumerate(cells) if size == 1)
    reference = known or family.reference(fn, value, rows, keepdim=True)
    if remember is not None:
        remember(reference)
    value = value if reference is None else value - reference.centre
    first = value.permute((*range(len(full), value.dim()), *range(len(full))))
    sums = []
    for statistic, shape in zip(family.sufficient(first, fn, reference), trailing, strict=True):
        last = statistic.permute((*range(len(shape), statistic.dim()), *range(len(shape))))
        widened = weights.double().reshape(*weights.shape, *([1] * len(shape)))
        sums.append(sum_to(torch.Size((*cells, *shape)), torch.Size((*full, *shape)), widened, last))
    total = sum_to(cells, full, weights.double())
    return family.collect(fn, reference, total, tuple(sums), variance_floor)
