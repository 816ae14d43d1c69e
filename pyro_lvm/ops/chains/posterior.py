"""The fastest engine that is exact for the chains at hand: rescaled probabilities, and logarithms where these fail."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pyro_lvm.ops.chains.exact import ExactPosterior, filter_exactly, lag_exactly
from pyro_lvm.ops.chains.fast import FastFilter, FastPosterior
from pyro_lvm.ops.chains.inputs import Chains

__all__ = ["Posterior", "block_length", "evidence", "filtered", "lagged", "posterior"]

# Steps in a block: on two cores 8 to 128 differ by less than half, for chains of 300 to 1,000,000 steps.
BLOCK = 32
# Below this length the loop over blocks and their blocks is no shorter than that over the steps.
SHORT = 128
# Numbers N K^2 that a step multiplies for each previous state in blocks, beyond which a loop over all steps is faster
# than K times the work: equal at N, K = 16, 32; 1, 128; 256, 8, on two cores. For a GPU it is a guess: not measured.
WIDE = {"cpu": 2**14, "cuda": 2**20}


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

    def log_forward(self) -> Tensor:
        """Log p(state at t, x up to t) up to a number for each step, shape (N, T, K), float64."""


def block_length(chains: Chains, algorithm: str) -> int:
    """Steps in a block of the rescaled recursions."""
    wide = chains.num_chains * chains.num_states**2 > WIDE.get(chains.emission.device.type, WIDE["cpu"])
    if algorithm == "sequential" or (algorithm == "auto" and (chains.num_steps <= SHORT or wide)):
        return chains.num_steps
    return 2 if algorithm == "scan" else min(BLOCK, max(2, round(chains.num_steps**0.5)))


def posterior(chains: Chains, algorithm: str) -> Posterior:
    """The posterior of the states of chains without gradients."""
    found = FastPosterior(chains, block_length(chains, algorithm))
    lost = found.lost.nonzero().squeeze(-1)
    return _Mended(found, chains, lost, algorithm) if len(lost) else found


def evidence(chains: Chains, algorithm: str) -> Tensor:
    """Log p(x), shape (N,), nats, float64, without gradients."""
    found = FastFilter(chains, block_length(chains, algorithm))
    lost = found.lost.nonzero().squeeze(-1)
    if not len(lost):
        return found.log_likelihood
    # the bound of the backward recursion is sharper, and knows impossible transitions from unlikely ones
    return found.log_likelihood.index_copy(0, lost, posterior(chains.select(lost), algorithm).log_likelihood)


def filtered(chains: Chains, algorithm: str) -> tuple[Tensor, Tensor]:
    """Filtered probabilities, shape (N, T, K), and log p(x_t | x before t), shape (N, T), nats."""
    found = FastFilter(chains, block_length(chains, algorithm))
    probabilities, increments = found.probabilities, found.increments
    lost = found.lost.nonzero().squeeze(-1)
    if len(lost):
        again = filter_exactly(chains.select(lost), algorithm)
        probabilities.index_copy_(0, lost, again[0].to(probabilities.dtype))
        increments.index_copy_(0, lost, again[1])
    return probabilities, increments


def lagged(chains: Chains, lag: int, algorithm: str) -> Tensor:
    """Probabilities of each state given x up to `lag` steps later, shape (N, T, K)."""
    probabilities, losses = FastFilter(chains, block_length(chains, algorithm)).lagged(lag)
    lost = losses.nonzero().squeeze(-1)
    if len(lost):
        again = lag_exactly(chains.select(lost), lag, algorithm)
        probabilities.index_copy_(0, lost, again.to(probabilities.dtype))
    return probabilities


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

    def log_forward(self) -> Tensor:
        return self._found.log_forward().index_copy_(0, self._lost, self._exact.log_forward())
