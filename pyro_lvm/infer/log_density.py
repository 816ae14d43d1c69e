"""Log-densities, by matrix products where there are few parameter cells and many rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.m_step import closed_form
from pyro_lvm.infer.natural import Kernel, broadcast_mask, dtype_of, has_family_density, peel

__all__ = ["log_density"]

# Numbers for which plain evaluation is as cheap.
FEW = 4096


def log_density(fn: Any, value: Tensor, *args: Any, correction: Tensor | None = None, **kwargs: Any) -> Tensor:
    """`fn.log_prob(value)`, by matrix products where `fn` has few parameter cells and `value` many rows.

    Args:
        fn: A Pyro distribution.
        value: Shape broadcastable to `fn.batch_shape + fn.event_shape`.
        args: Passed on to `fn.log_prob`.
        correction: Added to the log-density of every cell of the unwrapped distribution, nats.
        kwargs: Passed on to `fn.log_prob`.

    Returns:
        Log-density of shape `fn.batch_shape` broadcast with the batch shape of `value`, nats.
    """
    plain = (
        bool(args or kwargs)
        or torch.is_grad_enabled()
        or (value.numel() < FEW and torch.Size(fn.batch_shape).numel() < FEW)
    )
    kernel = None if plain and correction is None else Kernel.of(fn, value, correction=correction)
    if kernel is None or not kernel.accurate or kernel.cells.num_rows < 2:
        form = None if plain else closed_form(fn)
        density = form.score(fn, value) if form is not None and has_family_density(fn) else None
        if density is None:
            density = torch.as_tensor(fn.log_prob(value, *args, **kwargs))
        return density if correction is None else density + _sum_inside(fn, correction)
    fn._validate_sample(value) if fn._validate_args else None
    return kernel.cells.unflatten(kernel.table().to(dtype_of(kernel.base, value)))


def _sum_inside(fn: Any, correction: Tensor) -> Tensor:
    """A correction of the unwrapped distribution, summed over what `Independent` declares to be events."""
    _, inner, masks = peel(fn, None)
    if not inner:
        return correction
    mask = broadcast_mask(masks, fn.batch_shape, inner)
    correction = correction.expand(torch.broadcast_shapes(correction.shape, inner))
    return (correction if mask is None else correction * mask).sum(tuple(range(-len(inner), 0)))
