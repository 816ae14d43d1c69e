r"""Linear dynamics seen through linear maps with independent normal noise: the Kalman filter.

.. math::

    h_1 \sim \mathrm{Normal}(m_0, P_0), \qquad h_{t+1} \mid h_t \sim \mathrm{Normal}(A h_t, Q), \qquad
    x_t \mid h_t \sim \mathrm{Normal}(b + C h_t, R), \quad R \text{ diagonal}

With o the known entries of a step, :math:`P_t` the covariance of :math:`h_t` given the steps before, and
:math:`S = C_o P_t C_o^\top + R_o`, everything is told by :math:`I_t = C_o^\top S^{-1} C_o` and the score
:math:`s_t = C_o^\top S^{-1}(x_{t,o} - b_o - C_o m_t)`:

.. math::

    F_t = 1 - P_t I_t, \quad \mathrm{E}[h_t \mid x_{1:t}] = m_t + P_t s_t, \quad
    m_{t+1} = A F_t m_t + A P_t C_o^\top S^{-1} (x_{t,o} - b_o), \quad P_{t+1} = A F_t P_t A^\top + Q.

Gains, which do not depend on the values, are those of `pyro_lvm.ops.kalman_gains`.

References:
    R. Kalman (1960), A new approach to linear filtering and prediction problems, Journal of Basic Engineering 82.
    J. Durbin, S. Koopman (2012), Time Series Analysis by State Space Methods, sections 4.3 to 4.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.kalman_gains import Gains, LinearDynamics, gains_of, wide
from pyro_lvm.ops.recurrences import apply, recur
from pyro_lvm.ops.sequence_patterns import SequencePatterns, sequence_patterns

__all__ = ["Filtered", "filter_means", "kalman_filter"]


class Filtered(NamedTuple):
    """States given the steps up to their own; steps stand first.

    Attributes:
        predicted_loc: Means given the steps before, shape (T, n, k).
        loc: Means given the step too, shape (T, n, k).
        score: s, shape (T, n, k).
        log_likelihood: Log p(x) of every sequence, nats, shape (n,).
        gains: What does not depend on the values.
        patterns: What is known.
    """

    predicted_loc: Tensor
    loc: Tensor
    score: Tensor
    log_likelihood: Tensor
    gains: Gains
    patterns: SequencePatterns


def kalman_filter(dynamics: LinearDynamics, x: Tensor, lengths: Tensor | None = None) -> Filtered:
    """Log-likelihoods of sequences, and their states given the steps up to their own.

    Differentiable in the numbers of the law.

    Args:
        dynamics: The law.
        x: Sequences, shape (n, T, d), NaN where unknown.
        lengths: Steps of each, shape (n,); T by default.
    """
    patterns = sequence_patterns(x, lengths)
    gains = gains_of(dynamics, patterns)
    return filter_means(dynamics, x, patterns, gains)


def filter_means(dynamics: LinearDynamics, x: Tensor, patterns: SequencePatterns, gains: Gains) -> Filtered:
    """The part of the filter that depends on the values; arguments as for `kalman_filter`."""
    n = len(x)
    residual = (x - dynamics.loc).transpose(0, 1)
    known = None if patterns.complete else patterns.by_sequence(patterns.known, n)
    if known is not None:
        residual = torch.where(known, residual, 0.0)
    seen = (residual / dynamics.noise) @ dynamics.weight if wide(dynamics) else residual
    group, index = patterns.group, gains.which
    place = torch.tensor(index, device=x.device)
    base = apply(gains.reading[place], seen, group)
    predicted = gains.predicted[place]
    inputs = apply(predicted, base, group)[:-1] @ dynamics.transition.mT
    loc = recur(gains.onward, index[:-1], inputs, dynamics.initial_loc.expand(n, -1), group)
    score = base - apply(gains.information[place], loc, group)
    update = apply(predicted, score, group)
    filtered = loc + update
    error = residual - filtered @ dynamics.weight.mT
    squares = error.square() / dynamics.noise
    if known is not None:
        squares = torch.where(known, squares, 0.0)
    count = patterns.known.sum(-1).to(x.dtype)
    constant = (gains.log_determinant[place] + count * math.log(2 * math.pi)).sum(0)
    constant = constant if group is None else constant[group]
    total = constant + (squares.sum(-1) + (score * update).sum(-1)).sum(0)
    return Filtered(loc, filtered, score, -0.5 * total, gains, patterns)
