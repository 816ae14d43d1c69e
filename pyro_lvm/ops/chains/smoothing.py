"""Posterior marginals and expected transitions: the E-step of a hidden Markov model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.chains.inputs import prepare
from pyro_lvm.ops.chains.posterior import posterior
from pyro_lvm.ops.scratch import Scratch

__all__ = ["Smoothed", "smooth"]


@dataclass(frozen=True)
class Smoothed:
    """The posterior of the states of chains.

    Attributes:
        log_likelihood: Log p(x), shape (*batch,), nats; -inf where the data are impossible, all else is zero there.
        marginals: p(state at t | x), shape (*batch, T, K); zero in the padding.
        transitions: Expected numbers of transitions, [..., previous, next]. Shape (*batch, K, K), summed over the
            steps; or, if pairwise or if the chains have a matrix for each step, (*batch, T - 1, K, K), the posterior
            probabilities of two successive states. Without the batch's axes if its sum was asked for.
    """

    log_likelihood: Float[Tensor, "*batch"]
    marginals: Float[Tensor, "*batch T K"]
    transitions: Float[Tensor, "..."]


def smooth(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    pairwise: bool = False,
    sum_batch: bool = False,
    algorithm: str = "auto",
    scratch: Scratch | None = None,
) -> Smoothed:
    """The posterior of the states given all of x, by the forward and the backward recursion.

    Args:
        initial: As for `log_likelihood`, like all that follow.
        transition: Log p(next state | previous state).
        emission: Log p(x_t | state), shape (*batch, T, K).
        lengths: Steps of each chain, or None.
        pairwise: Whether transitions are wanted step by step; always so for chains with a matrix for each step.
        sum_batch: Whether transitions are summed over the batch, which then never takes memory for each chain.
        algorithm: "sequential", "blocked", "scan" or "auto".
        scratch: Memory of earlier calls to work in; the marginals lie in it, and the next call overwrites them.

    Returns:
        Everything without gradients: `log_likelihood` has them.

    Raises:
        ValueError: A shape, a length or the algorithm is not what it should be.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, equations 27 and 37.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> smooth(initial, transition, emission).marginals[-1]
        tensor([0.2121, 0.7879])
    """
    chains = prepare("smooth", initial, transition, emission, lengths, algorithm, scratch).detach()
    found = posterior(chains, algorithm)
    per_step = pairwise or not chains.homogeneous
    transitions = found.transitions(per_step=per_step, sum_batch=sum_batch)
    return Smoothed(
        log_likelihood=found.log_likelihood.to(emission.dtype).reshape(chains.batch),
        marginals=found.marginals().reshape(emission.shape),
        transitions=transitions.reshape(*(() if sum_batch else chains.batch), *transitions.shape[1:]),
    )
