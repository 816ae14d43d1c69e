r"""What the Kalman filter needs besides the values, in the notation of `pyro_lvm.ops.kalman`.

Covariances do not depend on the values: they are found once for all sequences of which the same entries are known, in a
loop that ends where they have converged, or, where what is known changes often, by running products of conditional
laws. With more columns than latent dimensions, k x k matrices are enough:
:math:`F = (1 + P M)^{-1}, I = M F, M = C_o^\top R_o^{-1} C_o`. No covariance is inverted, so that they may be singular.

References:
    S. Särkkä, A. García-Fernández (2021), Temporal parallelization of Bayesian smoothers, IEEE Transactions on
        Automatic Control 66.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.associative_scan import Parts, scan
from pyro_lvm.ops.sequence_patterns import SequencePatterns

__all__ = ["LOOK", "Gains", "LinearDynamics", "gains_of", "scanned", "settled", "wide"]

# Relative change of a covariance in a step from which on it is taken to stay: rounding of a few operations.
CONVERGED = 1e-13
LOOK = 4  # steps between looks whether it has
SETTLING = 16  # steps that this takes, about
SPARED = 40  # steps of one pattern that running products take in the time of a step of the loop
SILENT = 1e-8  # least share of noise in what a step brings to a column, for updates by k x k matrices to keep digits
LARGE = 6  # square of the size from which on this is fewer


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


def wide(dynamics: LinearDynamics) -> bool:
    """Whether there are more columns than latent dimensions, all with noise enough for the shorter way."""
    weight, noise = dynamics.weight.detach(), dynamics.noise.detach()
    moved = ((weight @ dynamics.transition_covariance.detach()) * weight).sum(-1)
    return len(weight) > weight.shape[1] and bool((noise > SILENT * moved).all())


def gains_of(dynamics: LinearDynamics, patterns: SequencePatterns) -> Gains:
    """The part of the filter that does not depend on the values, shared by sequences of one pattern.

    Args:
        dynamics: The law.
        patterns: What is known.
    """
    num_steps, groups, _ = patterns.known.shape
    a, q = dynamics.transition, dynamics.transition_covariance
    known = patterns.known.squeeze(1)  # of one pattern: matrices without an axis of patterns are faster
    update = (_Wide if wide(dynamics) else _Narrow)(dynamics, known)
    if scanned(len(patterns.changes), num_steps, groups, len(a)):
        covariances, rest = _all_at_once(dynamics, update, num_steps)
        return _gains(a, covariances, update.finish(*rest), list(range(num_steps)), groups == 1)
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
    covariances, *parts = (torch.stack(part) for part in zip(*steps, strict=True))
    return _gains(a, covariances, update.finish(*parts), which, groups == 1)


def _gains(a: Tensor, predicted: Tensor, found: list[Tensor], which: list[int], one: bool) -> Gains:
    """Gains with an axis of patterns, `found` being what the update of a step has found."""
    filtered, keep, information, reading, log_determinant = found
    parts = [predicted, filtered, information, a @ keep, reading, log_determinant]
    p, f, i, onward, r, s = (part.unsqueeze(1) if one else part for part in parts)
    return Gains(p, f, i, onward, r, s, which)


def _all_at_once(dynamics: LinearDynamics, update: _Wide | _Narrow, steps: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""Predicted covariances of all steps, and the update's results, by running products of conditional laws.

    Of :math:`h_t` given :math:`h_s` and the entries known between: its covariance is V and its mean changes with
    :math:`h_s` by E; J is the information of those entries about :math:`h_s`. Side by side, with
    :math:`M = (1 + V_1 J_2)^{-1}`, they make :math:`E_2 M E_1`, :math:`E_2 M V_1 E_2^\top + V_2` and
    :math:`J_1 + E_1^\top J_2 M E_1`.
    """
    a, q = dynamics.transition, dynamics.transition_covariance
    update.begin(slice(None))
    first = dynamics.initial_covariance.expand_as(q)
    start = torch.cat([first[None], q.expand(steps - 1, *q.shape)])
    shape = update.shape
    start = start.reshape(steps, *[1] * (len(shape) - 1), *q.shape).expand(*shape, *q.shape)
    spread, keep, information, _, _ = update.finish(*update.step(start))
    effect = torch.cat([torch.zeros_like(keep[:1]), keep[1:] @ a])
    told = a.mT @ information @ a
    eye = torch.eye(len(a), dtype=a.dtype, device=a.device)

    def combine(one: Parts, two: Parts) -> Parts:
        (e1, v1, j1), (e2, v2, j2) = one, two
        parts = torch.linalg.solve(eye + v1 @ j2, torch.cat([e1, v1], -1))
        both, across = parts.split(len(a), -1)
        return e2 @ both, v2 + _symmetric(e2 @ across @ e2.mT), j1 + _symmetric(e1.mT @ j2 @ both)

    _, filtered, _ = scan(combine, (effect, spread, told))
    predicted = torch.cat([start[:1], _symmetric(a @ filtered[:-1] @ a.mT + q)])
    return predicted, update.step(predicted)


def scanned(changes: int, steps: int, groups: int, size: int) -> bool:
    """Whether running products over all steps take less time than a loop that stops where covariances have settled.

    Args:
        changes: How often what is known changes.
        steps: T.
        groups: Number of patterns.
        size: k.
    """
    return steps * groups * (1 + size * size / LARGE) < SPARED * min(steps, SETTLING * changes)


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
        self.shape = known.shape[:-1]

    def begin(self, t: int | slice) -> None:
        """Take what is known at a step, or at several."""
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
        self.shape = known.shape[:-1]

    def begin(self, t: int | slice) -> None:
        """Take what is known at a step, or at several."""
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
