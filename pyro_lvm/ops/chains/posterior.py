"""The posterior by the fastest engine that is exact for the chains at hand."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyro_lvm.ops.chains.exact import ExactPosterior, log_evidence
from pyro_lvm.ops.chains.inputs import Chains

__all__ = ["Posterior", "evidence", "posterior"]


class Posterior(Protocol):
    """What every engine gives of N chains.

    Attributes:
        log_likelihood: Log p(x), shape (N,), nats, float64.
    """

    log_likelihood: Tensor

    def marginals(self) -> Tensor:
        """Posterior probabilities of the states, shape (N, T, K), zero in the padding."""

    def transitions(self, weights: Tensor | None = None, *, per_step: bool, sum_batch: bool) -> Tensor:
        """Expected transitions, shape (N or 1, T - 1, K, K) if `per_step`, else (N or 1, K, K)."""


def posterior(chains: Chains, algorithm: str) -> Posterior:
    """The posterior of the states of chains without gradients."""
    return ExactPosterior(chains, algorithm)


def evidence(chains: Chains, algorithm: str) -> Tensor:
    """Log p(x), shape (N,), nats, float64, without gradients."""
    return log_evidence(chains.detach().double(), algorithm)
