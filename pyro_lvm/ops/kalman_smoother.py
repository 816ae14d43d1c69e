r"""States of linear dynamics given whole sequences, in the notation of `pyro_lvm.ops.kalman`.

.. math::

    r_{t-1} = s_t + (A F_t)^\top r_t, \quad N_{t-1} = I_t + (A F_t)^\top N_t A F_t, \qquad r_T = 0, \; N_T = 0, \\
    \mathrm{E}[h_t \mid x] = \mathrm{E}[h_t \mid x_{1:t}] + F_t P_t A^\top r_t, \quad
    \mathrm{V}[h_t \mid x] = F_t P_t - F_t P_t A^\top N_t A F_t P_t, \\
    \mathrm{Cov}[h_{t+1}, h_t \mid x] = (1 - P_{t+1} N_t) A F_t P_t

These are the means and covariances of the Rauch-Tung-Striebel smoother; no covariance is inverted.

References:
    H. Rauch, F. Tung, C. Striebel (1965), Maximum likelihood estimates of linear dynamic systems, AIAA Journal 3.
    J. Durbin, S. Koopman (2012), Time Series Analysis by State Space Methods, sections 4.4 to 4.7 and 4.9.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.associative_scan import Parts, scan
from pyro_lvm.ops.kalman import Filtered, filter_means, kalman_filter
from pyro_lvm.ops.kalman_gains import LOOK, Gains, LinearDynamics, scanned, settled
from pyro_lvm.ops.recurrences import apply, recur, stretches

__all__ = ["Smoothed", "kalman_smoother", "sample_dynamics", "sample_states"]


class Smoothed(NamedTuple):
    """States given whole sequences; steps stand first.

    Attributes:
        loc: Means, shape (T, n, k).
        covariance: By pattern, shape (T, g, k, k).
        cross_covariance: Of each next state with each state, shape (T - 1, g, k, k).
        filtered: The filter's results.
    """

    loc: Tensor
    covariance: Tensor
    cross_covariance: Tensor
    filtered: Filtered


def kalman_smoother(
    dynamics: LinearDynamics, x: Tensor, lengths: Tensor | None = None, filtered: Filtered | None = None
) -> Smoothed:
    """States given whole sequences.

    Args:
        dynamics: The law.
        x: Sequences, shape (n, T, d), NaN where unknown.
        lengths: Steps of each, shape (n,); T by default. States of padding are forecasts.
        filtered: What `kalman_filter` gave for the same arguments; found if None.
    """
    filtered = kalman_filter(dynamics, x, lengths) if filtered is None else filtered
    gains = filtered.gains
    place = torch.tensor(gains.which, device=x.device)
    backward, after = _backward(gains)
    later = backward[torch.tensor(after, device=x.device)]
    ahead = dynamics.transition @ gains.filtered[place]
    covariance = gains.filtered[place] - ahead.mT @ later @ ahead
    eye = torch.eye(ahead.shape[-1], dtype=ahead.dtype, device=ahead.device)
    cross = (eye - gains.predicted[place[1:]] @ later[:-1]) @ ahead[:-1]
    return Smoothed(_means(filtered, ahead), 0.5 * (covariance + covariance.mT), cross, filtered)


def _means(filtered: Filtered, ahead: Tensor) -> Tensor:
    """Smoothed means, shape (T, n, k), `ahead` being A F P of every step."""
    gains, group = filtered.gains, filtered.patterns.group
    turned = gains.which[:0:-1]  # last step first, without the first one
    start = torch.zeros_like(filtered.score[0])
    past = recur(gains.onward.mT, turned, filtered.score[1:].flip(0), start, group)
    return filtered.loc + apply(ahead.mT, past.flip(0), group)


def _backward(gains: Gains) -> tuple[Tensor, list[int]]:
    """The different N that occur, shape (s, g, k, k), and which of them stands after each step."""
    one = gains.information.shape[1] == 1  # of one pattern: matrices without an axis of patterns are faster
    information, onward = (t.squeeze(1) if one else t for t in (gains.information, gains.onward))
    total = len(gains.which)
    if len(information) == total > 1 and scanned(total, total, gains.information.shape[1], onward.shape[-1]):
        different = torch.cat([_later(information[1:], onward[1:]), torch.zeros_like(information[:1])])
        return different.unsqueeze(1) if one else different, list(range(total))
    turned = onward.mT.contiguous()
    now = torch.zeros_like(information[0])
    found, after = [now], [0]  # last step first
    for start, end in reversed(stretches(gains.which)):
        first, here = max(start, 1), gains.which[start]
        there, back, more = onward[here], turned[here], information[here]
        for t in range(end - 1, first - 1, -1):
            before = more + back @ now @ there
            done = (end - t) % LOOK == 0 and t > first and settled(before, now)
            now = before
            found.append(now)
            after.append(len(found) - 1)
            if done:
                after += [len(found) - 1] * (t - first)
                break
    different = torch.stack(found)
    return different.unsqueeze(1) if one else different, after[::-1]


def _later(information: Tensor, onward: Tensor) -> Tensor:
    """N after every step but the last, by running products from the end."""

    def combine(one: Parts, two: Parts) -> Parts:
        matrix = one[1] @ two[1]
        return two[0] + two[1].mT @ one[0] @ two[1], matrix

    return scan(combine, (information.flip(0), onward.flip(0)))[0].flip(0)


def sample_states(
    dynamics: LinearDynamics, x: Tensor, lengths: Tensor | None, count: int, filtered: Filtered | None = None
) -> Tensor:
    """Draws of all states given sequences, shape (count, n, T, k).

    A sequence is drawn from the law with the same entries unknown; the error of its smoothed states is one of ours.

    Args:
        dynamics: The law.
        x: Sequences, shape (n, T, d), NaN where unknown.
        lengths: Steps of each, shape (n,).
        count: Number of draws.
        filtered: As for `kalman_smoother`.

    References:
        J. Durbin, S. Koopman (2002), A simple and efficient simulation smoother, Biometrika 89.
    """
    filtered = kalman_filter(dynamics, x, lengths) if filtered is None else filtered
    gains, patterns = filtered.gains, filtered.patterns
    ahead = dynamics.transition @ gains.filtered[torch.tensor(gains.which, device=x.device)]
    loc = _means(filtered, ahead).transpose(0, 1)
    n, total, _ = x.shape
    states, values = sample_dynamics(dynamics, total, count * n)
    many = patterns._replace(group=None if patterns.group is None else patterns.group.repeat(count))
    again = filter_means(dynamics, values, many, gains)
    error = states - _means(again, ahead).transpose(0, 1)
    return loc + error.unflatten(0, (count, n))


def sample_dynamics(dynamics: LinearDynamics, steps: int, count: int) -> tuple[Tensor, Tensor]:
    """Draws of states, shape (count, steps, k), and of sequences, (count, steps, d).

    Args:
        dynamics: The law; covariances may be singular.
        steps: T >= 1.
        count: Number of draws.
    """
    like, k = dynamics.weight, dynamics.weight.shape[1]
    noise = torch.randn(steps, count, k, dtype=like.dtype, device=like.device)
    first = dynamics.initial_loc + noise[0] @ _root(dynamics.initial_covariance).mT
    rest = noise[1:] @ _root(dynamics.transition_covariance).mT
    states = recur(dynamics.transition[None, None], [0] * (steps - 1), rest, first, None).transpose(0, 1)
    errors = torch.randn(count, steps, len(like), dtype=like.dtype, device=like.device)
    return states, dynamics.loc + states @ like.mT + errors * dynamics.noise.sqrt()


def _root(covariance: Tensor) -> Tensor:
    """A matrix whose product with its transpose is a covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
