"""Running products of an associative operation, in logarithmically many calls of it on all elements at once.

References:
    G. Blelloch (1990), Prefix sums and their applications, CMU-CS-90-190.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Parts", "scan"]

Parts = tuple[Tensor, ...]


def scan(combine: Callable[[Parts, Parts], Parts], elements: Parts) -> Parts:
    """The first element, the first two combined, and so on; about two calls on each element.

    Args:
        combine: An associative operation on elements that stand side by side, along the first axis, earlier ones first.
        elements: Tensors of which each element has a slice; of one length, at least 1.
    """
    count = len(elements[0])
    if count == 1:
        return elements
    pairs = combine(tuple(e[: count - 1 : 2] for e in elements), tuple(e[1::2] for e in elements))
    odd = scan(combine, pairs)
    if count == 2:
        return tuple(torch.cat([e[:1], o]) for e, o in zip(elements, odd, strict=True))
    later = combine(tuple(o[: (count - 1) // 2] for o in odd), tuple(e[2::2] for e in elements))
    return tuple(_between(torch.cat([e[:1], a]), o) for e, a, o in zip(elements, later, odd, strict=True))


def _between(even: Tensor, odd: Tensor) -> Tensor:
    """Slices in turn, the first of `even` first, which has as many as `odd` or one more."""
    joined = torch.stack([even[: len(odd)], odd], 1).flatten(0, 1)
    return joined if len(even) == len(odd) else torch.cat([joined, even[-1:]])
