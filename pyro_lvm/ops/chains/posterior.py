"""The posterior by the fastest engine that is exact for the chains at hand."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyro_lvm.ops.chains.exact import ExactPosterior
from pyro_lvm.ops.chains.fast import FastPosterior
from pyro_lvm.ops.chains.inputs import Chains

__all__ = ["Posterior", "block_length", "evidence", "posterior"]


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


def block_length(chains: Chains, algorithm: str) -> int:
    """Steps in a block of the rescaled recursions."""
    if algorithm == "scan":
        return 2
    if algorithm == "sequential" or (algorithm == "auto" and chains.num_steps <= 256):
        return chains.num_steps
    return 64 if chains.num_steps > 128 else 2


def posterior(chains: Chains, algorithm: str) -> Posterior:
    """The posterior of the states of chains without gradients."""
    found = FastPosterior(chains, block_length(chains, algorithm))
    lost = found.lost.nonzero().squeeze(-1)
    return _Mended(found, chains, lost, algorithm) if len(lost) else found


def evidence(chains: Chains, algorithm: str) -> Tensor:
    """Log p(x), shape (N,), nats, float64, without gradients."""
    return posterior(chains.detach(), algorithm).log_likelihood


class _Mended:
    """The fast posterior with the chains that it lost done again in logarithms."""

    def __init__(self, found: FastPosterior, chains: Chains, lost: Tensor, algorithm: str) -> None:
        self._found, self._lost = found, lost
        self._exact = ExactPosterior(chains.select(lost), algorithm)
        self.log_likelihood = found.log_likelihood.index_copy(0, lost, self._exact.log_likelihood)

    def marginals(self) -> Tensor:
        return self._found.marginals().index_copy_(0, self._lost, self._exact.marginals())

    def transitions(self, weights: Tensor | None = None, *, per_step: bool, sum_batch: bool) -> Tensor:
        some = None if weights is None else weights[self._lost]
        result = self._found.transitions(weights, per_step=per_step, sum_batch=sum_batch)
        again = self._exact.transitions(some, per_step=per_step, sum_batch=sum_batch)
        return result + again if sum_batch else result.index_copy_(0, self._lost, again)
