"""How well found states agree with known classes."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["many_to_one"]


def many_to_one(states: Int[Tensor, "*n"], classes: Int[Tensor, "*n"]) -> tuple[float, Int[Tensor, " k"]]:
    """Share of steps whose state stands for their class, if every state stands for the class it occurs with most.

    It grows with the number of states: compare only models with as many.

    Args:
        states: Found states, integers >= 0; negative ones (padding, unknown) do not count.
        classes: Known classes of the same steps, integers >= 0; negative ones do not count.

    Returns:
        The share, in [0, 1], and the class of every state, shape (k,).

    Raises:
        ValueError: The shapes differ, or nothing counts.

    References:
        M. Johnson (2007), Why doesn't EM find good HMM POS-taggers?, EMNLP-CoNLL, section 3.

    Example:
        >>> import torch
        >>> from pyro_lvm.diagnostics import many_to_one
        >>> many_to_one(torch.tensor([0, 0, 1, 2]), torch.tensor([5, 5, 3, 5]))
        (1.0, tensor([5, 3, 5]))
    """
    if states.shape != classes.shape:
        raise ValueError(
            f"many_to_one: expected states and classes of one shape; got {tuple(states.shape)} and "
            f"{tuple(classes.shape)}. Concatenate sequences of unequal length."
        )
    counted = (states >= 0) & (classes >= 0)
    if not bool(counted.any()):
        raise ValueError("many_to_one: expected steps with a state and a class; got none.")
    found, known = states[counted].long(), classes[counted].long()
    k, c = int(found.max()) + 1, int(known.max()) + 1
    table = torch.bincount(found * c + known, minlength=k * c).reshape(k, c)
    return float(table.amax(1).sum() / counted.sum()), table.argmax(1)
