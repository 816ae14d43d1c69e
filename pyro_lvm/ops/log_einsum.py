r"""Sums of products of exponentials, in log space, that do not underflow where the factors disagree.

Pyro's own kernel shifts each operand by its own maximum. Where one operand has its maximum in a cell that another
rules out (a known label under a component far away, a forbidden transition), all products vanish: the logarithm is
-inf, and long before that its gradient, cut off at 1 / machine epsilon, is wrong. Here the operands are added before
the maximum is taken wherever that costs no more memory than the largest of them, and elsewhere if it is needed.

Named as a backend of `opt_einsum`, which needs `einsum`, `transpose` and `tensordot`.

References:
    P. Blanchard, D. Higham, N. Higham (2021), Accurately computing the log-sum-exp and softmax functions, IMA JNA 41.
"""

from __future__ import annotations

import torch
from pyro.ops.einsum import torch_log
from pyro.ops.einsum.util import Tensordot
from torch import Tensor

__all__ = ["einsum", "tensordot", "transpose"]

shifted_einsum = torch_log.einsum
transpose = torch_log.transpose


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Log of `torch.einsum` of the exponentials.

    Args:
        equation: As for `torch.einsum`, with an explicit output.
        operands: Logarithms; -inf stands for zero.

    Returns:
        Logarithms, with gradients that are exact.
    """
    inputs, output = equation.split("->")
    names = inputs.split(",")
    if len(operands) > 1 and not any(set("".join(names)) <= set(name) for name in names):
        result = shifted_einsum(equation, *operands)
        if not _underflows(result, names, output, operands):
            return result
    order = output + "".join(sorted(set("".join(names)) - set(output)))
    if order == output == names[0] and len(operands) == 1:
        return operands[0].clone()
    total = _aligned(operands[0], names[0], order)
    for operand, name in zip(operands[1:], names[1:], strict=True):
        total = total + _aligned(operand, name, order)
    return _log_sum_exp(total, len(output))


def _underflows(result: Tensor, names: list[str], output: str, operands: tuple[Tensor, ...]) -> bool:
    """Whether some sum is so far below the product of its operands' maxima that precision is lost."""
    bound: Tensor | float = 0.0
    for operand, name in zip(operands, names, strict=True):
        summed = [i for i, dim in enumerate(name) if dim not in output]
        peak = operand.detach().amax(summed, keepdim=True) if summed else operand.detach()
        kept = "".join(dim for dim in name if dim in output)
        bound = bound + _aligned(peak.reshape([operand.shape[name.index(d)] for d in kept]), kept, output)
    # the shifted kernel's gradient is cut off below eps; the square root leaves a margin for chained sums
    floor = 0.5 * torch.finfo(result.dtype).eps ** 0.5
    lost = (result.detach() - bound).exp() < floor
    return bool((lost & (bound > -torch.inf)).any())


def _aligned(operand: Tensor, name: str, order: str) -> Tensor:
    """The operand with dimensions in the given order, of size one where it has none."""
    kept = [dim for dim in order if dim in name]
    operand = operand.permute([name.index(dim) for dim in kept])
    sizes = iter(operand.shape)
    return operand.reshape([next(sizes) if dim in name else 1 for dim in order])


def _log_sum_exp(total: Tensor, kept: int) -> Tensor:
    """Sum out all but the first dimensions; zero where all terms are, without a gradient that is not a number."""
    if total.dim() == kept:
        return total
    total = total.flatten(kept)
    possible = (total > -torch.inf).any(-1)
    safe = torch.where(possible.unsqueeze(-1), total, 0.0)
    largest = safe.detach().amax(-1, keepdim=True)  # its size would round the gradient, a difference of exponents
    return torch.where(possible, (safe - largest).logsumexp(-1) + largest.squeeze(-1), -torch.inf)


tensordot = Tensordot(einsum)
