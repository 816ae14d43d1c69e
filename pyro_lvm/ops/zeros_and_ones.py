r"""Independent zeros and ones, in half of the time of one uniform number for each.

Of a uniform number :math:`U = (A + B) / 2^{16}`, with an integer :math:`A` and :math:`0 \le B < 1`, nearly always
:math:`A` alone decides whether :math:`U \ge 1 - p`. So every entry has an :math:`A` of its own, four of which are cut
from one number of the generator, and all share :math:`B`. Each entry is one with its probability, to :math:`2^{-24}` as
with numbers of single precision; the covariance of two entries is below :math:`2^{-34}`.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["zeros_and_ones"]

STEPS = 2**16


def zeros_and_ones(probs: Tensor) -> Tensor:
    """Ones with given probabilities, zeros else, of the type of the probabilities; they change with torch's seed."""
    if probs.dtype != torch.float32 or probs.device.type != "cpu":
        return torch.rand_like(probs).lt_(probs)  # a conversion from bool would take as long as the draw
    count = probs.numel()
    words = torch.empty(count // 4 + 2, dtype=torch.int64).random_(-(2**63), None)
    high = words.view(torch.int16)[:count].view(probs.shape).float()  # from -2^15
    low = (int(words[-1]) >> 56) / 256  # from -1/2
    return high.ge_(torch.rsub(probs, STEPS // 2 - 0.5 - low, alpha=STEPS))
