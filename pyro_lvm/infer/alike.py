"""Whether tensors are the same functions of the same parameters: equal values, equal derivatives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.handlers.open_mixtures import arguments_of
from pyro_lvm.infer.blocks import fixed_noise
from pyro_lvm.ops.cells import compact

__all__ = ["alike", "kinds", "leaves_of", "probe", "tensors_of"]


def kinds(fn: Any) -> list[type]:
    """The types of a distribution and all that it wraps."""
    return [type(fn), *(kinds(fn.base_dist) if hasattr(fn, "base_dist") else [])]


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    """The leaves of the graph that tensors come from."""
    found: dict[int, Tensor] = {}
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    found.update({id(t): t for t in tensors if t.requires_grad and t.grad_fn is None})
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        pending.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(found.values())


def probe(tensors: Iterable[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Tensors, and the derivatives of a fixed combination of them."""
    found = [tensor.detach() for tensor in tensors]
    terms = [(tensor * fixed_noise(tensor)).sum() for tensor in tensors if tensor.requires_grad]
    if not terms:
        return found
    slopes = torch.autograd.grad(torch.stack(terms).sum(), leaves, retain_graph=True, allow_unused=True)
    return [*found, *(torch.zeros(()) if slope is None else slope for slope in slopes)]


def alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal."""
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def tensors_of(fn: Any) -> list[Tensor]:
    """Arguments that a distribution was built from, through what wraps it.

    Raises:
        ValueError: It does not say what it was built from.
    """
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    found = arguments_of(fn)
    if found is None:
        raise ValueError(f"{type(fn).__name__}: its arguments are not known.")
    tensors, settings = found
    return [*map(compact, tensors.values()), *(torch.tensor(hash(value)) for value in settings.values())]
