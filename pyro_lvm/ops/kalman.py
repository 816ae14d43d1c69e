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

Covariances do not depend on the values: they are found once for all sequences of which the same entries are known, and
no more once they have converged. With more columns than latent dimensions, k x k matrices are enough:
:math:`F = (1 + P M)^{-1}, I = M F, M = C_o^\top R_o^{-1} C_o`. No covariance is inverted, so that they may be singular.

References:
    R. Kalman (1960), A new approach to linear filtering and prediction problems, Journal of Basic Engineering 82.
    J. Durbin, S. Koopman (2012), Time Series Analysis by State Space Methods, sections 4.3 to 4.5.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.recurrences import apply, recur
from pyro_lvm.ops.sequence_patterns import SequencePatterns, sequence_patterns

__all__ = ["LOOK", "Filtered", "Gains", "LinearDynamics", "filter_means", "gains_of", "kalman_filter", "settled"]

# Relative change of a covariance in a step from which on it is taken to stay: rounding of a few operations.
CONVERGED = 1e-13
LOOK = 4  # steps between looks whether it has


class LinearDynamics(NamedTuple):
    """The numbers of the law.

    Attributes:
        initial_loc: Mean of the first state, shape (k,).
        initial_covariance: Its covariance, shape (k, k).
        transition: A, shape (k, k).
        transition_covariance: Q, shape (k, k).
        loc: b, shape (d,).
        weight: C, shape (d, k).
        noise: Variances R, shape (d,), positive.
    """

    initial_loc: Tensor
    initial_covariance: Tensor
    transition: Tensor
    transition_covariance: Tensor
    loc: Tensor
    weight: Tensor
    noise: Tensor


class Gains(NamedTuple):
    """What the filter needs besides the values: matrices of s different steps, by pattern.

    Attributes:
        predicted: Covariances given the steps before, shape (s, g, k, k).
        filtered: Given the step too, shape (s, g, k, k).
        information: I, shape (s, g, k, k).
        onward: A F, shape (s, g, k, k).
        reading: From what is read of a step to the score at a mean of zero, shape (s, g, k, m).
        log_determinant: Of S, shape (s, g).
        which: Which of them each step has, length T.
    """

    predicted: Tensor
    filtered: Tensor
    information: Tensor
    onward: Tensor
    reading: Tensor
    log_determinant: Tensor
    which: list[int]


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
    seen = (residual / dynamics.noise) @ dynamics.weight if _wide(dynamics) else residual
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


def _wide(dynamics: LinearDynamics) -> bool:
    """Whether there are more columns than latent dimensions."""
    d, k = dynamics.weight.shape
    return d > k


def gains_of(dynamics: LinearDynamics, patterns: SequencePatterns) -> Gains:
    """The part of the filter that does not depend on the values, shared by sequences of one pattern.

    Args:
        dynamics: The law.
        patterns: What is known.
    """
    num_steps, groups, _ = patterns.known.shape
    a, q = dynamics.transition, dynamics.transition_covariance
    known = patterns.known.squeeze(1)  # of one pattern: matrices without an axis of patterns are faster
    update = (_Wide if _wide(dynamics) else _Narrow)(dynamics, known)
    covariance = dynamics.initial_covariance.expand(*known.shape[1:-1], *a.shape)
    steps: list[tuple[Tensor, ...]] = []
    which: list[int] = []
    for start, end in pairwise([*patterns.changes, num_steps]):
        update.begin(start)
        for t in range(start, end):
            found = update.step(covariance)
            steps.append((covariance, *found))
            which.append(len(steps) - 1)
            after = _symmetric(a @ found[0] @ a.mT + q)
            look = (t - start) % LOOK == LOOK - 1
            if look and t + 1 < end and settled(after, covariance):
                which += [len(steps) - 1] * (end - t - 1)
                covariance = after
                break
            covariance = after
    parts = (torch.stack(part) for part in zip(*steps, strict=True))
    covariances, *rest = (part.unsqueeze(1) if groups == 1 else part for part in parts)
    filtered, keep, information, reading, log_determinant = update.finish(*rest)
    return Gains(covariances, filtered, information, a @ keep, reading, log_determinant, which)


def settled(one: Tensor, other: Tensor) -> bool:
    """Whether a step has changed covariances by no more than rounding."""
    one, other = one.detach(), other.detach()
    return bool((one - other).abs().amax() <= CONVERGED * other.abs().amax())


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


class _Wide:
    """Updates by k x k matrices: more columns than latent dimensions."""

    def __init__(self, dynamics: LinearDynamics, known: Tensor) -> None:
        counted = known.to(dynamics.weight.dtype)
        weight, noise = dynamics.weight, dynamics.noise
        k = weight.shape[1]
        gain = weight / noise.unsqueeze(-1)
        products = (gain.unsqueeze(-1) * weight.unsqueeze(-2)).flatten(1)  # of the rows of C, (d, k * k)
        self.precisions = (counted @ products).unflatten(-1, (k, k))
        self.log_noises = counted @ noise.log()
        self.eye = torch.eye(k, dtype=gain.dtype, device=gain.device)

    def begin(self, t: int) -> None:
        """Take what is known at a step."""
        self.precision, self.log_noise = self.precisions[t], self.log_noises[t]

    def step(self, covariance: Tensor) -> tuple[Tensor, ...]:
        """Filtered covariance, F, its inverse, M, log |R|."""
        ratio = self.eye + covariance @ self.precision
        keep = torch.linalg.inv(ratio)
        return keep @ covariance, keep, ratio, self.precision, self.log_noise

    def finish(self, filtered: Tensor, keep: Tensor, ratio: Tensor, precision: Tensor, rest: Tensor) -> list[Tensor]:
        """Filtered covariances, F, I, from C' R^{-1} x to the score, log |S|, of all steps."""
        log_determinant = torch.linalg.slogdet(ratio).logabsdet + rest
        return [_symmetric(filtered), keep, _symmetric(precision @ keep), keep.mT, log_determinant]


class _Narrow:
    """Updates by d x d matrices: exact also where the noise is next to nothing."""

    def __init__(self, dynamics: LinearDynamics, known: Tensor) -> None:
        self.known, self.weight, self.noise = known, dynamics.weight, dynamics.noise
        self.eye = torch.eye(self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)

    def begin(self, t: int) -> None:
        """Take what is known at a step."""
        known = self.known[t]
        self.seen = torch.where(known.unsqueeze(-1), self.weight, 0.0)
        self.variance = torch.diag_embed(torch.where(known, self.noise, 1.0))

    def step(self, covariance: Tensor) -> tuple[Tensor, ...]:
        """Filtered covariance, F, from x to the score, the known rows of C, S."""
        total = self.seen @ covariance @ self.seen.mT + self.variance
        reading = torch.cholesky_solve(self.seen, torch.linalg.cholesky(total)).mT
        gain = covariance @ reading
        keep = self.eye - gain @ self.seen
        filtered = keep @ covariance @ keep.mT + gain @ self.variance @ gain.mT
        return filtered, keep, reading, self.seen, total

    def finish(self, filtered: Tensor, keep: Tensor, reading: Tensor, seen: Tensor, total: Tensor) -> list[Tensor]:
        """Filtered covariances, F, I, from x to the score, log |S|, of all steps."""
        log_determinant = torch.linalg.slogdet(total).logabsdet
        return [_symmetric(filtered), keep, _symmetric(reading @ seen), reading, log_determinant]
