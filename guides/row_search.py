r"""The search for a normal law of every row's latent variables: gradient steps on each row's own bound.

The law of row n is :math:`q_n(v) = \mathrm{Normal}(a_n, \mathrm{diag}(e^{b_n})^2)`, and its bound
:math:`\mathrm{E}_{q_n}[\log p(x_n, v)] + \mathrm{H}(q_n)`. With :math:`v^\pm = a \pm e^b \epsilon` for
one :math:`\epsilon \sim \mathrm{Normal}(0, I)` and :math:`g^\pm = \nabla_v \log p(x_n, v^\pm)`, its gradient is
estimated along the path of the draws only,

.. math::

    \hat\nabla_a = \tfrac12 (g^+ + g^-), \qquad
    \hat\nabla_b = \tfrac12\, e^b \epsilon\, (g^+ - g^-) + \epsilon^2,

whose second term has mean 1, the gradient of the entropy. Where the exact posterior is in the family, both vanish at it
whatever :math:`\epsilon` is, so that the search ends at it without noise. The first is exact for every normal posterior.

References:
    G. Roeder, Y. Wu, D. Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for
        variational inference, NeurIPS, equation 8.
    D. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, ICLR, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Memory", "climb"]

DECAYS = 0.9, 0.999
EPSILON = 1e-8


class Memory(NamedTuple):
    """Adam's state of every row: averages of the gradient and of its square, (n, 2k), and steps taken, (n, 1)."""

    slope: Tensor
    square: Tensor
    steps: Tensor

    @classmethod
    def empty(cls, place: Tensor) -> Memory:
        """Before the first step."""
        return cls(torch.zeros_like(place), torch.zeros_like(place), place.new_zeros(len(place), 1))


def climb(
    log_joint: Callable[[Tensor], Tensor],
    place: Tensor,
    num_steps: int,
    learning_rate: float,
    *,
    weight: Tensor | float = 1.0,
    memory: Memory | None = None,
    landing: bool = False,
) -> tuple[Tensor, Memory]:
    """Improve the normal law of every row, all rows at once, each by steps of its own.

    Args:
        log_joint: From latent variables of all rows, (n, k), to the sum of log p(x, v) over rows, nats.
        place: Means and log standard deviations, (n, 2k).
        num_steps: Gradient steps, >= 0.
        learning_rate: Length of Adam's steps.
        weight: What the entropy of each latent variable counts, (n, k): 0 where it counts nothing in `log_joint`.
        memory: Where earlier steps ended.
        landing: Whether steps shrink linearly towards 0 over the second half.

    Returns:
        The place reached, and the memory for further steps. A row whose gradient is not finite rests.
    """
    memory = memory or Memory.empty(place)
    with torch.enable_grad():
        for step in range(num_steps):
            rate = learning_rate * (min(1.0, 2 * (1 - step / num_steps)) if landing else 1.0)
            loc, log_scale = place.detach().chunk(2, -1)
            offset = log_scale.exp() * (noise := torch.randn_like(loc))
            above, below = (_slope(log_joint, loc + sign * offset) for sign in (1, -1))
            slope = torch.cat([(above + below) / 2, offset * (above - below) / 2 + weight * noise.square()], -1)
            place, memory = _adam(place.detach(), slope, rate, memory)
    return place.detach(), memory


def _slope(log_joint: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    values = values.requires_grad_()
    return torch.autograd.grad(log_joint(values), values)[0]


def _adam(place: Tensor, slope: Tensor, rate: float, memory: Memory) -> tuple[Tensor, Memory]:
    """One step uphill."""
    first, second = DECAYS
    moved = Memory(
        memory.slope.lerp(slope, 1 - first), memory.square.lerp(slope.square(), 1 - second), memory.steps + 1
    )
    mean, square = moved.slope / (1 - first**moved.steps), moved.square / (1 - second**moved.steps)
    there = place + rate * mean / (square.sqrt() + EPSILON)
    good = there.isfinite().all(-1, keepdim=True)
    return torch.where(good, there, place), Memory(*(torch.where(good, *both) for both in zip(moved, memory, strict=True)))
