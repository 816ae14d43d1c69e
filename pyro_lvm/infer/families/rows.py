"""What families share: references beside rows, and weighted sums where a density is not linear in statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.ops.cells import sum_to

__all__ = ["Rows", "beside", "learned"]


def learned(*tensors: Any) -> bool:
    """Whether any of these depends on a parameter."""
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def beside(reference: Tensor, value: Tensor) -> Tensor:
    """What is known of one row, broadcastable to values that may have their rows last."""
    return reference.reshape(*reference.shape, *([1] * (value.dim() - reference.dim())))


@dataclass(frozen=True)
class Rows:
    """Weights of a site's rows, and the cells onto which they are summed.

    Attributes:
        weights: Broadcastable to `full`.
        full: The site's batch shape.
        cells: The arguments' batch shape, of as many dimensions as `full`; size one where only rows vary.
    """

    weights: Tensor
    full: torch.Size
    cells: torch.Size

    @classmethod
    def of(cls, fn: Any, value: Tensor, weights: Tensor, *arguments: Tensor) -> Rows:
        """The layout of a distribution whose values are numbers, with compact arguments."""
        full = torch.broadcast_shapes(fn.batch_shape, value.shape, weights.shape)
        found = torch.broadcast_shapes(*(argument.shape for argument in arguments))
        return cls(weights.double(), full, torch.Size((1,) * (len(full) - len(found)) + tuple(found)))

    def sum(self, *factors: Tensor) -> Tensor:
        """The sum over rows of weights times factors, shape `cells`."""
        return sum_to(self.cells, self.full, self.weights, *(factor.double() for factor in factors))

    def histogram(self, index: Tensor, size: int) -> Tensor:
        """The weight of every index, shape `cells + (size,)`.

        Args:
            index: Whole numbers below `size`, broadcastable to `full`.
            size: Length of the histogram.
        """
        number = torch.arange(self.cells.numel(), device=index.device).reshape(self.cells)
        flat = (number * size + index).expand(self.full).reshape(-1)
        sums = self.weights.new_zeros(self.cells.numel() * size)
        return sums.index_add_(0, flat, self.weights.expand(self.full).reshape(-1)).reshape(*self.cells, size)
