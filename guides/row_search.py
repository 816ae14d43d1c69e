r"""The search for a normal law of every row's latent variables: natural-gradient steps on each row's own bound.

The law of row n is :math:`q_n(v) = \mathrm{Normal}(a_n, \mathrm{diag}(e^{b_n})^2)`, and its bound
:math:`\mathrm{E}_{q_n}[\log p(x_n, v)] + \mathrm{H}(q_n)`. With :math:`v^\pm = a \pm e^b \epsilon` for
one :math:`\epsilon \sim \mathrm{Normal}(0, I)` and :math:`g^\pm = \nabla_v \log p(x_n, v^\pm)`, its gradient is
estimated along the path of the draws only,

.. math::

    \hat\nabla_a = \tfrac12 (g^+ + g^-), \qquad
    \hat\nabla_b = \tfrac12\, e^b \epsilon\, (g^+ - g^-) + \epsilon^2,

whose second term has mean 1, the gradient of the entropy. Where the exact posterior is in the family, both vanish at it
whatever :math:`\epsilon` is, so that the search ends there without noise. The Fisher information of :math:`(a, b)` is
:math:`(e^{-2b}, 2)`: a step of size :math:`\rho` is

.. math:: b \leftarrow b + \tfrac{\rho}{2} \hat\nabla_b, \qquad a \leftarrow a + \rho\, e^{2b} \hat\nabla_a,

Newton's for the mean where the precision is found. It needs no memory and no unit of length.

References:
    M. Hoffman, D. Blei, C. Wang, J. Paisley (2013), Stochastic variational inference, JMLR 14, section 2.3.
    G. Roeder, Y. Wu, D. Duvenaud (2017), Sticking the landing: simple, lower-variance gradient estimators for
        variational inference, NeurIPS, equation 8.
    M. Khan, H. Rue (2023), The Bayesian learning rule, JMLR 24, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["climb"]

# A step's limits: it shrinks no scale below e^-1 of itself, widens none beyond e^.5, and moves no mean further than
# three standard deviations. Quadratic bounds are not reached by them but from starts that are far too wide or narrow.
SHRINK, WIDEN, REACH = -1.0, 0.5, 3.0


def climb(
    log_joint: Callable[[Tensor], Tensor],
    place: Tensor,
    num_steps: int,
    step_size: float,
    *,
    weight: Tensor | float = 1.0,
    landing: bool = False,
) -> Tensor:
    """Improve the normal law of every row, all rows at once.

    Args:
        log_joint: From latent variables of all rows, (n, k), to the sum of log p(x, v) over rows, nats.
        place: Means and log standard deviations, (n, 2k).
        num_steps: Steps, >= 0.
        step_size: In (0, 1].
        weight: What the entropy of each latent variable counts, (n, k): 0 where it counts nothing in `log_joint`.
        landing: Whether steps shrink linearly towards 0 over the second half.

    Returns:
        The place reached, without a graph. A row whose gradient is not finite rests.
    """
    place = place.detach()
    for step in range(num_steps):
        size = step_size * (min(1.0, 2 * (1 - step / num_steps)) if landing else 1.0)
        loc, log_scale = place.chunk(2, -1)
        noise = torch.randn_like(loc)
        offset = log_scale.exp() * noise
        above, below = (_slope(log_joint, loc + sign * offset) for sign in (1, -1))
        wider = offset * (above - below) / 2 + weight * noise.square()
        log_scale = log_scale + (size / 2 * wider).clamp(SHRINK, WIDEN)
        scale = log_scale.exp()
        moved = (size * scale * (above + below) / 2).clamp(-REACH, REACH)  # in standard deviations
        there = torch.cat([loc + scale * moved, log_scale], -1)
        place = torch.where(there.isfinite().all(-1, keepdim=True), there, place)
    return place


def _slope(log_joint: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    with torch.enable_grad():
        values = values.requires_grad_()
        return torch.autograd.grad(log_joint(values), values)[0]
