r"""The normalizer of an undirected model by annealed importance sampling, forward and reverse.

Chains go along laws :math:`p_k(v) = e^{-F_k(v)} / Z_k` from a base with known :math:`Z_0` to the model. With

.. math:: \log w = \sum_{k=1}^{K} (F_{k-1} - F_k)(v_{k-1}), \qquad v_k \sim T_k(\cdot \mid v_{k-1}),

where :math:`T_k` leaves :math:`p_k` invariant and :math:`v_0 \sim p_0`, :math:`\mathrm{E}[w] = Z_K / Z_0`. The walk
from the model down to the base gives :math:`Z_0 / Z_K`. By Jensen's inequality the logarithm of the first is too small
on average and that of the second too large, if its chains do start from the model: together they bracket.

References:
    R. Neal (2001), Annealed importance sampling, Statistics and Computing 11, equation 11.
    R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, ICML, section 4.
    R. Grosse, Z. Ghahramani, R. Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_lvm.ops.progress import PATIENCE, progress_bar
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["Annealed", "LogNormalizer", "annealed_importance_sampling", "reverse_annealed_importance_sampling"]


class Annealed(Protocol):
    """A law at the end of a path that starts, at inverse temperature 0, from one whose normalizer is known."""

    def base_log_normalizer(self) -> Tensor:
        """The logarithm of the normalizer of the path's start, nats."""

    def base_sample(self, count: int) -> Tensor:
        """Independent draws from the path's start, shape (count, ...)."""

    def annealed_step(self, value: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        """Free energy at `beta` minus that at `next_beta` (nats, shape (n,)), and values moved at `next_beta`."""


@dataclass(frozen=True)
class LogNormalizer:
    """An estimate of the logarithm of a normalizer.

    Attributes:
        value: Nats.
        standard_error: Of the value, by the delta method, nats.
        effective_sample_size: How many equal weights would tell as much, from 1 to the number of chains.
        log_weights: Of the chains, nats, shape (chains,).
        estimator: What was computed.
    """

    value: float
    standard_error: float
    effective_sample_size: float
    log_weights: Tensor
    estimator: str


def annealed_importance_sampling(
    law: Annealed, num_chains: int = 100, temperatures: Tensor | None = None
) -> LogNormalizer:
    """Estimate log Z by chains from the base to the law; on average it is too small.

    Args:
        law: What to normalise.
        num_chains: Independent chains, >= 2.
        temperatures: Rising inverse temperatures from 0 to 1; by default the 14,501 of Salakhutdinov and Murray.

    Raises:
        TypeError: It is no such law.
        ValueError: The temperatures or the number of chains make no sense.
    """
    _check_law("annealed_importance_sampling", law)
    num_chains = _chains("annealed_importance_sampling", num_chains)
    path = _path("annealed_importance_sampling", temperatures)
    with torch.no_grad():
        log_weights = _walk(law, law.base_sample(num_chains), path)
        ratio, error, size = _summarise(log_weights)
        value = float(law.base_log_normalizer()) + ratio
    return LogNormalizer(value, error, size, log_weights, f"AIS, {num_chains} chains, {len(path)} temperatures")


def reverse_annealed_importance_sampling(
    law: Annealed, values: Tensor, temperatures: Tensor | None = None
) -> LogNormalizer:
    """Estimate log Z by chains from the law to the base; on average it is too large.

    That holds if the values are draws from the law. Rows of data that the law does not fit give any number.

    Args:
        law: What to normalise.
        values: Draws from the law, as by long Gibbs chains, one for each chain, shape (n, ...), n >= 2.
        temperatures: As in `annealed_importance_sampling`.

    Raises:
        TypeError: It is no such law.
        ValueError: The temperatures or the number of values make no sense.
    """
    _check_law("reverse_annealed_importance_sampling", law)
    _chains("reverse_annealed_importance_sampling", len(values))
    path = _path("reverse_annealed_importance_sampling", temperatures)
    with torch.no_grad():
        log_weights = _walk(law, values, path[::-1])
        ratio, error, size = _summarise(log_weights)
        value = float(law.base_log_normalizer()) - ratio
    return LogNormalizer(
        value, error, size, log_weights, f"reverse AIS, {len(values)} chains, {len(path)} temperatures"
    )


def _check_law(caller: str, law: Any) -> None:
    if not hasattr(law, "base_log_normalizer"):
        raise TypeError(
            f"{caller}: expected the law of an undirected site, as lvm.distributions.RBM; got {type(law).__name__}. Of "
            "a fit pass fit.model.law(), of a deep belief net fit.model.top.law(); fit.evidence(x) does so by itself."
        )


def default_temperatures() -> Tensor:
    """The 14,501 inverse temperatures of Salakhutdinov and Murray (2008), section 6.1."""
    parts = (
        torch.linspace(0, 0.5, 501, dtype=torch.float64)[:-1],
        torch.linspace(0.5, 0.9, 4001, dtype=torch.float64)[:-1],
        torch.linspace(0.9, 1, 10001, dtype=torch.float64),
    )
    return torch.cat(parts)


def _walk(law: Annealed, values: Tensor, path: list[float]) -> Tensor:
    total = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    with progress_bar(len(path) - 1, "annealing", "step", delay=PATIENCE) as bar:
        for beta, next_beta in pairwise(path):
            values, increment = law.annealed_step(values, beta, next_beta)
            total += increment
            bar.update()
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            "annealed importance sampling: expected finite weights; got a chain whose energy is not. "
            "Check the parameters for infinite or missing entries."
        )
    return total


def _summarise(log_weights: Tensor) -> tuple[float, float, float]:
    """Logarithm of the mean weight, its standard error, and the effective sample size."""
    count = len(log_weights)
    log_mean = float(log_weights.logsumexp(0)) - math.log(count)
    relative = (log_weights - log_mean).exp()
    return log_mean, float(relative.std()) / math.sqrt(count), count**2 / float((relative**2).sum())


def _chains(caller: str, count: int) -> int:
    count = whole_number(caller, "num_chains", count)
    if count < 2:
        raise ValueError(f"{caller}: expected at least 2 chains for a standard error; got {count}. Use about 100.")
    return count


def _path(caller: str, temperatures: Tensor | None) -> list[float]:
    path = default_temperatures() if temperatures is None else torch.as_tensor(temperatures).double().flatten()
    if len(path) < 2 or float(path[0]) != 0 or float(path[-1]) != 1 or not bool((path.diff() > 0).all()):
        raise ValueError(
            f"{caller}: expected inverse temperatures that rise from 0 to 1; got {len(path)} of them. "
            "Pass torch.linspace(0, 1, 1000), or leave them out."
        )
    return [float(beta) for beta in path]
