"""Memory for intermediate results, kept between calls: fresh memory costs more than most of what is written to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Tensors by name; a name gives the same memory every time, so what it gave before is overwritten.

    Example:
        >>> import torch
        >>> scratch = Scratch()
        >>> first, second = (scratch.take("sums", (2, n), torch.zeros(0)) for n in (3, 2))
        >>> second.shape, first.data_ptr() == second.data_ptr()
        (torch.Size([2, 2]), True)
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A tensor of a shape, and of the type and device of another; what it holds means nothing."""
        key, shape = (name, like.dtype, like.device), torch.Size(shape)
        kept = self._kept.get(key)
        if kept is None or kept.numel() < shape.numel():
            kept = self._kept[key] = torch.empty(shape.numel(), dtype=like.dtype, device=like.device)
        return kept[: shape.numel()].view(shape)

    def release(self) -> None:
        """Give all of the memory back."""
        self._kept.clear()
