"""A distribution whose last batch dimensions are states, with those dimensions moved in front of all others."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution
from torch import Tensor

from pyro_lvm.handlers.open_mixtures import rebuilt
from pyro_lvm.ops.cells import compact

__all__ = ["by_state", "components"]


def by_state(fn: Any, depth: int, axes: int) -> Any:
    """Move the last `axes` batch dimensions, last first, in front of `depth` plates and the steps.

    Args:
        fn: A distribution of batch shape (states,) + ..., or plates + (steps, states, ...).
        depth: Number of plates.
        axes: 1 for states, 2 for states and mixture components.

    Returns:
        The same law by its arguments, where it can be made anew from them; else a wrapper that only scores.
    """
    made = _made_anew(fn, depth, axes, 0)
    return _Moved(fn, depth, axes) if made is None else made


def components(fn: Any) -> tuple[Any, Any] | None:
    """Mixing law and components of a mixture whose components can be made anew; None for anything else."""
    if not isinstance(fn, torch.distributions.MixtureSameFamily):
        return None
    return fn.mixture_distribution, fn.component_distribution


def _made_anew(fn: Any, depth: int, axes: int, inside: int) -> Any:
    if isinstance(fn, torch.distributions.Independent):
        inner = fn.reinterpreted_batch_ndims
        made = _made_anew(fn.base_dist, depth, axes, inside + inner)
        return None if made is None else made.to_event(inner)
    if isinstance(fn, MaskedDistribution):
        made = _made_anew(fn.base_dist, depth, axes, inside)
        mask = fn._mask
        if made is None or not isinstance(mask, Tensor):
            return None if made is None else made.mask(mask)
        return made.mask(_front(mask, depth, axes, inside))
    return rebuilt(fn, lambda tensor, event_dim: _front(tensor, depth, axes, inside + event_dim))


def _front(tensor: Tensor, depth: int, axes: int, inside: int) -> Tensor:
    """An argument of shape batch + states + inside, as states + plates + steps + inside."""
    tensor = compact(tensor, inside)
    short = axes + inside - tensor.dim()
    if short > 0:
        tensor = tensor.reshape((1,) * short + tuple(tensor.shape))
    last = tensor.dim() - inside
    tensor = tensor.movedim(tuple(range(last - axes, last)), tuple(range(axes - 1, -1, -1)))
    batch = tensor.shape[axes : tensor.dim() - inside]
    padding = (1,) * (depth + 1 - len(batch))
    return tensor.reshape((*tensor.shape[:axes], *padding, *tensor.shape[axes:]))


class _Moved(TorchDistribution):
    """Scores like the law that it wraps, states first."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, fn: Any, depth: int, axes: int) -> None:
        self.fn = fn
        self.axes = axes
        shape = fn.batch_shape
        plates = shape[: len(shape) - axes]
        states = tuple(reversed(shape[len(shape) - axes :]))
        batch = (*states, *([1] * (depth + 1 - len(plates))), *plates)
        super().__init__(torch.Size(batch), fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.fn.support

    def log_prob(self, value: Tensor) -> Tensor:
        for _ in range(self.axes):
            value = value.unsqueeze(value.dim() - self.fn.event_dim)
        density = self.fn.log_prob(value)
        last = density.dim()
        return density.movedim(tuple(range(last - self.axes, last)), tuple(range(self.axes - 1, -1, -1)))
