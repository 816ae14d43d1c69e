r"""What a closed-form M-step is.

A closed form maximises :math:`\sum_{c, n} w_{cn} \log p(x_n \mid \theta_c)` over one argument of a distribution, the
others held at their current value (conditional maximisation; for a location and the scale that it shares cells with,
one pass is the joint maximum). Every form is a pair of steps: *accumulate* statistics on the argument's cells, which
the caller scatter-adds into parameter blocks, and *solve* the summed statistics for a block.

`pyro_lvm.infer.families` has the forms of the standard families; register one of your own there.

References:
    X.-L. Meng and D. Rubin (1993), Maximum likelihood estimation via the ECM algorithm, Biometrika 80(2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Argument", "ClosedForm", "View", "unwrap"]


class Statistics(dict[str, Tensor]):
    """Expected sufficient statistics by name, each of shape `cells` + its own trailing dimensions."""

    def __init__(self, cells: torch.Size, **statistics: Tensor) -> None:
        super().__init__(statistics)
        self.cells = cells


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class View:
    """One way of writing an argument, in which a parameter may appear as a plain selection.

    Attributes:
        name: What the parameter then is: "scale", "variance", "log scale", ...
        encode: From the argument's canonical value to this view, differentiable.
        decode: The inverse.
        normalised: "sum" or "shift" if the distribution normalises rows of this view.
        matrix: "symmetric" or "lower" if blocks of this view are such matrices.
    """

    name: str
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same
    normalised: str | None = None
    matrix: str | None = None


@dataclass(frozen=True)
class Argument:
    """One argument of a family with its closed form.

    Attributes:
        name: The argument's canonical name.
        read: The argument's canonical value from a distribution.
        accumulate: From statistics and the current canonical arguments to tensors on the cells.
        solve: From those tensors, summed over the cells of a block, to the block's canonical value; NaN where the
            block got no weight.
        views: The ways in which a parameter can be read off.
        event_dim: Dimensions of one block.
        same_cells: A cheaper pair of accumulate and solve, valid if no two cells share a block.
    """

    name: str
    read: Callable[[Any], Tensor]
    accumulate: Callable[[Statistics, dict[str, Tensor]], tuple[Tensor, ...]]
    solve: Callable[..., Tensor]
    views: tuple[View, ...]
    event_dim: int = 0
    same_cells: tuple[Callable, Callable] | None = None


class ClosedForm(ABC):
    """The closed-form M-step of one family: its arguments, in order of maximisation, and its statistics."""

    arguments: ClassVar[tuple[Argument, ...]]

    @abstractmethod
    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        """Expected sufficient statistics on the cells of the arguments.

        Args:
            fn: The distribution, unwrapped.
            value: The site's value.
            weights: Posterior weight of each cell of the log-density, broadcastable to `fn`'s batch.
            variance_floor: Smallest variance allowed, relative to that of the value.
        """


def unwrap(fn: Any, weights: Tensor) -> tuple[Any, Tensor]:
    """Strip `Independent`, `Masked` and `Expanded` wrappers; weights follow the batch shape inward."""
    while True:
        if isinstance(fn, dist.MaskedDistribution):
            weights = weights * fn._mask
            fn = fn.base_dist
        elif isinstance(fn, torch.distributions.Independent):
            weights = weights.reshape(*weights.shape, *([1] * fn.reinterpreted_batch_ndims))
            fn = fn.base_dist
        else:
            return fn, weights
