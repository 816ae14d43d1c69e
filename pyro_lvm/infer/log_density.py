"""Log-densities, by matrix products where there are few parameter cells and many rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.infer.m_step import Reference, closed_form
from pyro_lvm.infer.natural import Kernel, broadcast_mask, has_family_density, peel

__all__ = ["log_density", "product_form"]

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
    plain = bool(args or kwargs) or _is_plain(fn, value)
    kernel = None if plain and correction is None else _accurate(fn, value, correction)
    if kernel is None:
        form = None if plain else closed_form(fn)
        density = form.score(fn, value) if form is not None and has_family_density(fn) else None
        if density is None:
            density = torch.as_tensor(fn.log_prob(value, *args, **kwargs))
        return density if correction is None else density + _sum_inside(fn, correction)
    fn._validate_sample(value) if fn._validate_args else None
    return kernel.scores()


def product_form(
    fn: Any, value: Tensor, reference: Reference | None = None, correction: Tensor | None = None
) -> Kernel | None:
    """The natural form of `fn` at `value`, if matrix products are worth their while and keep six decimals.

    Args:
        fn: A Pyro distribution.
        value: Its value.
        reference: Where values lie, if known.
        correction: As for `log_density`.
    """
    return None if correction is None and _is_plain(fn, value) else _accurate(fn, value, correction, reference)


def _is_plain(fn: Any, value: Tensor) -> bool:
    """Whether plain evaluation is called for: with a graph, or for few numbers."""
    return torch.is_grad_enabled() or (value.numel() < FEW and torch.Size(fn.batch_shape).numel() < FEW)


def _accurate(fn: Any, value: Tensor, correction: Tensor | None, reference: Reference | None = None) -> Kernel | None:
    kernel = Kernel.of(fn, value, reference=reference, correction=correction)
    return kernel if kernel is not None and kernel.accurate and kernel.cells.num_rows > 1 else None


def _sum_inside(fn: Any, correction: Tensor) -> Tensor:
    """A correction of the unwrapped distribution, summed over what `Independent` declares to be events."""
    _, inner, masks = peel(fn, None)
    if not inner:
        return correction
    mask = broadcast_mask(masks, fn.batch_shape, inner)
    correction = correction.expand(torch.broadcast_shapes(correction.shape, inner))
    return (correction if mask is None else correction * mask).sum(tuple(range(-len(inner), 0)))
