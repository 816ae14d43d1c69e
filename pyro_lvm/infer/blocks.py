r"""Does a distribution argument merely *select* entries of a parameter? Then its M-step needs no gradient.

`loc[z]`, `loc`, `rates[z, group]`, `scale.expand(...)` and every tying or sharing of them copy parameter entries
without arithmetic: the map from parameter to argument is linear with exactly one nonzero number per argument entry.
Jacobian-vector products decide: the parameter's numbering reveals which entry each argument entry copies, a direction
without pattern confirms it, and a direction of ones reveals a constant factor (`100 * covariance`). The expected
sufficient statistics of the parameter are then the scatter-add of those of the argument.

A normalised argument (`Categorical(probs=w)` divides by the row sum, `Categorical(logits=a)` subtracts the row's
log-sum-exp) is linear only along directions that the normalisation does not see; the probes keep to those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Blocks", "find_blocks", "fixed_noise", "unify"]


@dataclass(frozen=True)
class Blocks:
    """Which block of a parameter every cell of an argument copies.

    Attributes:
        block: Block number of each cell, shape (cells,).
        elements: Flat parameter indices of each block, shape (blocks, *event).
        batch: The argument's (compact) batch shape; its product is `cells`.
        injective: Whether no two cells share a block.
        factor: What the copied entries are multiplied by, broadcastable to `batch`; None if by one.
    """

    block: Tensor
    elements: Tensor
    batch: torch.Size
    injective: bool
    factor: Tensor | None = None

    @cached_property
    def whole(self) -> bool:
        """Whether the blocks are the parameter's first entries, in order."""
        flat = self.elements.reshape(-1)
        return torch.equal(flat, torch.arange(len(flat), device=flat.device))

    @cached_property
    def in_order(self) -> bool:
        """Whether each cell has a block of its own, in order."""
        same = len(self.block) == len(self.elements)
        return same and torch.equal(self.block, torch.arange(len(self.block), device=self.block.device))

    def scatter(self, statistic: Tensor, cells: torch.Size) -> Tensor:
        """Add a statistic of shape `cells + trailing` into blocks: shape (blocks, *trailing)."""
        trailing = statistic.shape[len(cells) :]
        if self.in_order and self.padded(cells) == cells:
            return statistic.reshape(len(self.block), *trailing)
        batch = self.padded(cells)
        repeated = [d for d, size in enumerate(batch) if size == 1 and cells[d] > 1]
        if repeated:  # cells that the argument does not tell apart
            statistic = statistic.sum(repeated, keepdim=True)
        statistic = statistic.expand((*batch, *trailing)).reshape(len(self.block), *trailing)
        out = statistic.new_zeros(len(self.elements), *trailing)
        return out.index_add_(0, self.block, statistic)

    def padded(self, cells: torch.Size) -> torch.Size:
        """The argument's batch shape with as many dimensions as `cells`."""
        return torch.Size((1,) * (len(cells) - len(self.batch)) + tuple(self.batch))

    def read(self, parameter: Tensor) -> Tensor:
        """The argument's entries: shape `batch + event`."""
        whole = self.whole and parameter.numel() == self.elements.numel()
        blocks = parameter.reshape(self.elements.shape) if whole else parameter.reshape(-1)[self.elements]
        copied = blocks if self.in_order else blocks[self.block]
        copied = copied.reshape((*self.batch, *self.elements.shape[1:]))
        if self.factor is None:
            return copied
        return copied * self.factor.reshape((*self.factor.shape, *([1] * (self.elements.dim() - 1))))

    def write(self, parameter: Tensor, blocks: Tensor) -> Tensor:
        """A copy of the parameter with new blocks."""
        if self.whole and blocks.numel() == parameter.numel():
            return blocks.to(parameter.dtype).reshape(parameter.shape)
        flat = parameter.detach().reshape(-1).clone()
        flat[self.elements.reshape(-1)] = blocks.to(flat.dtype).reshape(-1)
        return flat.reshape(parameter.shape)


def unify(found: list[Blocks]) -> list[Blocks] | None:
    """Number the blocks of several selections of one parameter alike; None if they cut it up differently."""
    if len(found) == 1:
        return found
    event = found[0].elements.shape[1:]
    table = torch.cat([b.elements.reshape(len(b.elements), -1) for b in found])
    number, elements = _group(table)
    if elements is None:
        return None
    starts = [0, *torch.tensor([len(b.elements) for b in found]).cumsum(0).tolist()]
    return [
        replace(b, block=number[start:][b.block], elements=elements.reshape(-1, *event))
        for b, start in zip(found, starts, strict=False)
    ]


def _group(indices: Tensor) -> tuple[Tensor, Tensor | None]:
    """Equal rows get one number, in order of their first entry; None if unequal rows share an entry."""
    keys, number = indices[:, 0].unique(return_inverse=True)
    first = torch.empty_like(keys)
    first[number.flip(0)] = torch.arange(len(number), device=number.device).flip(0)
    elements = indices[first]
    distinct = bool((indices == elements[number]).all()) and len(elements.unique()) == elements.numel()
    return number, elements if distinct else None


def _jacobian_product(argument: Tensor, parameter: Tensor, tangents: list[Tensor]) -> list[Tensor] | None:
    """Forward-mode products by differentiating the backward pass, which is linear in its cotangent."""
    cotangent = torch.zeros_like(argument, requires_grad=True)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        argument, parameter, cotangent, create_graph=True, retain_graph=True, allow_unused=True
    )
    pulled = found[0]
    if pulled is None:
        return None
    if not pulled.requires_grad:
        return [torch.zeros_like(argument) for _ in tangents]
    return [
        torch.autograd.grad(pulled, cotangent, tangent.to(pulled.dtype), retain_graph=True)[0] for tangent in tangents
    ]


def find_blocks(
    argument: Tensor,
    parameter: Tensor,
    event_dim: int,
    normalised: str | None = None,
    matrix: str | None = None,
) -> Blocks | str | None:
    """Find the selection that maps a parameter to an argument.

    Args:
        argument: A distribution argument with its autograd graph, compact, shape `batch + event`.
        parameter: The parameter as the model read it.
        event_dim: Dimensions of one block, at the right.
        normalised: None, or "sum" or "shift" for rows that the distribution normalises.
        matrix: None, or "symmetric" or "lower" for matrices of which a density sees only that part.

    Returns:
        The blocks; a reason why the argument is not a selection; or None if it does not depend on the parameter.
    """
    if not argument.requires_grad:
        return None
    if not torch.is_floating_point(parameter):
        return None
    with torch.enable_grad():
        if normalised:
            return _find_rows(argument, parameter, normalised)
        return _find_elements(argument, parameter, event_dim, matrix)


def _find_elements(argument: Tensor, parameter: Tensor, event_dim: int, matrix: str | None) -> Blocks | str | None:
    eps = torch.finfo(argument.dtype).eps
    count, computed = parameter.numel(), "it is computed from the parameter, not selected from it"
    number = torch.arange(count, device=parameter.device).reshape(parameter.shape)
    noise = fixed_noise(parameter)
    seen = torch.ones(argument.shape[argument.dim() - event_dim :], dtype=torch.bool, device=argument.device)
    if matrix:
        if parameter.dim() < 2 or parameter.shape[-2:] != argument.shape[-2:]:
            return computed
        seen = seen.tril() if matrix == "lower" else seen
        number, noise = _mirrored(number), _mirrored(noise) if matrix == "symmetric" else noise
    base = math.isqrt(count) + 1  # entries are numbered in two digits, which float32 holds exactly
    high, low = (digit.to(parameter.dtype) + 1 for digit in (number // base, number % base))
    ones = torch.ones_like(noise)
    tangents = [tangent.tril() if matrix == "lower" else tangent for tangent in (high, low, noise, ones)]
    products = _jacobian_product(argument, parameter, tangents)
    if products is None:
        return None
    batch = argument.shape[: argument.dim() - event_dim]
    event = argument.shape[argument.dim() - event_dim :]
    factor = products[3].reshape(*batch, -1)[..., :1]  # a copy times c moves by c when all entries move by one
    factor = factor.reshape((*batch, *([1] * event_dim)))
    if not bool(torch.isfinite(factor).all() & (factor != 0).all()):
        return computed
    products = [product / factor for product in products]
    digits = torch.stack(products[:2])
    digits = _mirrored(digits) if matrix else digits
    rounded = digits.round()
    if not bool(((digits - rounded).abs() < 0.05).all() & (rounded >= 1).all() & (rounded <= base).all()):
        return computed
    indices = (rounded[0].long() - 1) * base + rounded[1].long() - 1
    if indices.numel() == 0 or int(indices.max()) >= count:
        return computed
    if matrix:  # the probe named lower entries: upper ones follow the diagonal of their row
        column = torch.arange(parameter.shape[-1], device=indices.device)
        upper = indices.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) + column - column.unsqueeze(-1)
        indices = torch.where(column > column.unsqueeze(-1), upper, indices)
    flat = parameter.detach().reshape(-1)
    selected = flat[indices] * seen, noise.reshape(-1)[indices] * seen
    if not _close(argument / factor * seen, selected[0], eps) or not _close(products[2] * seen, selected[1], eps):
        return computed
    indices = indices.reshape(-1, math.prod(event))
    block, elements = _group(indices)
    if elements is None:
        return "its blocks overlap: entries of the parameter are shared between different positions"
    scaled = None if _close(factor, torch.ones_like(factor), eps) else factor.detach().reshape(batch)
    return Blocks(block, elements.reshape(-1, *event), batch, len(elements) == len(block), scaled)


def _mirrored(matrices: Tensor) -> Tensor:
    """Symmetric matrices with the given lower triangles."""
    return matrices.tril() + matrices.tril(-1).mT


def _find_rows(argument: Tensor, parameter: Tensor, normalised: str) -> Blocks | str | None:
    eps = torch.finfo(argument.dtype).eps
    states = argument.shape[-1]
    if parameter.dim() == 0 or parameter.shape[-1] != states:
        products = _jacobian_product(argument, parameter, [fixed_noise(parameter)])
        return None if products is None else "it is computed from the parameter, not selected from it"
    rows = parameter.detach().reshape(-1, states)
    batch = argument.shape[:-1]
    elements = torch.arange(rows.numel(), device=rows.device).reshape(rows.shape)
    direction = torch.arange(states, dtype=rows.dtype, device=rows.device) - (states - 1) / 2
    total = rows.sum(-1) if normalised == "sum" else torch.ones_like(rows[:, 0])
    number = torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)
    tangent = (number * total).unsqueeze(-1) * direction
    products = _jacobian_product(argument, parameter, [tangent.reshape(parameter.shape)])
    if products is None:
        return None
    if states == 1:  # the only state has probability one, whatever the parameter: no matter which row is whose
        block = torch.arange(math.prod(batch), device=rows.device) % len(rows)
        used = min(len(rows), len(block))
        return Blocks(block, elements[:used], batch, used == len(block))
    change = products[0] - products[0][..., :1]
    row = (change[..., -1] / (states - 1)).round().long() - 1
    if not bool(((row >= 0) & (row < len(rows))).all()):
        return "its rows are computed from the parameter, not selected from it"
    expected = (row + 1).unsqueeze(-1) * (direction - direction[0])
    source = rows[row]
    if normalised == "sum":
        same = _close(argument, source / source.sum(-1, keepdim=True), eps)
    else:
        same = _close(argument - argument[..., :1], source - source[..., :1], eps)
    if not same or not _close(change, expected.to(change.dtype), eps):
        return "its rows are computed from the parameter, not selected from it"
    keys, block = row.reshape(-1).unique(return_inverse=True)
    return Blocks(block, elements[keys], batch, len(keys) == len(block))


def _close(a: Tensor, b: Tensor, eps: float) -> bool:
    return torch.allclose(a.detach(), b.detach().to(a.dtype), rtol=1e4 * eps, atol=1e3 * eps * float(b.abs().max()))


def fixed_noise(parameter: Tensor) -> Tensor:
    """A direction without pattern, the same at every call: fractional parts of multiples of the golden ratio."""
    steps = torch.arange(1, parameter.numel() + 1, dtype=torch.float64, device=parameter.device)
    return (steps * 0.6180339887498949).frac().sub(0.5).to(parameter.dtype).reshape(parameter.shape)
