"""A backend for `opt_einsum` in the log-sum-exp semiring, exact in value and gradient.

Operands are added by broadcasting and summed by log-sum-exp about each entry's own maximum. Pyro's own backend shifts
each operand by its own maximum instead: faster, but where two operands disagree by more than 36 nats (16 in float32)
its gradients, which are posteriors here, no longer sum to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permute dimensions."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Log-sum-exp over the dimensions that the output lacks of the sum of all operands."""
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    every = output + "".join(sorted(set("".join(terms)) - set(output)))
    total: Any = 0.0
    for dims, operand in zip(terms, operands, strict=True):
        order = sorted(range(len(dims)), key=lambda i, dims=dims: every.index(dims[i]))  # type: ignore[misc]
        sizes = iter(operand.permute(order).shape)
        shape = [next(sizes) if dim in dims else 1 for dim in every]
        total = total + operand.permute(order).reshape(shape)
    summed = tuple(range(len(output), len(every)))
    if not summed:
        return total.clone()
    largest = total.detach().amax(summed, keepdim=True)
    largest = torch.where(torch.isfinite(largest), largest, torch.zeros_like(largest))
    return (total - largest).logsumexp(summed) + largest.reshape(largest.shape[: len(output)])


def tensordot(a: Tensor, b: Tensor, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    """Sum over pairs of dimensions."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    first = list(letters[: a.dim()])
    second = list(letters[a.dim() : a.dim() + b.dim()])
    for i, j in zip(*axes, strict=True):
        second[j] = first[i]
    shared = {first[i] for i in axes[0]}
    output = [d for d in (*first, *second) if d not in shared]
    return einsum(f"{''.join(first)},{''.join(second)}->{''.join(output)}", a, b)
