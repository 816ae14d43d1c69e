"""The log-likelihood of chains, whose gradient is the posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.chains.exact import log_evidence
from pyro_lvm.ops.chains.inputs import Chains, prepare
from pyro_lvm.ops.chains.posterior import evidence, posterior

__all__ = ["log_likelihood"]


def log_likelihood(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    algorithm: str = "auto",
) -> Float[Tensor, "*batch"]:
    r"""Log p(x) of every chain, all paths of its states summed.

    .. math::

        \log \sum_{z_1 \ldots z_T} p(z_1)\, p(x_1 \mid z_1) \prod_{t=2}^T p(z_t \mid z_{t-1})\, p(x_t \mid z_t)

    Its gradient is the posterior: of `emission` the marginals, of `transition` the expected transitions, of `initial`
    the first marginals; zero in the padding and wherever something is impossible. Higher derivatives are exact too.
    Nothing needs to be normalised: any potentials in place of log-probabilities give the log of their partition sum.

    Args:
        initial: Log p(first state), broadcastable to (*batch, K).
        transition: Log p(next state | previous state), [..., step, previous, next], broadcastable to
            (*batch, T - 1, K, K); its time axis is 1 if all steps share one matrix.
        emission: Log p(x_t | state), shape (*batch, T, K); -inf where a state is ruled out, a row of zeros where a step
            is missing.
        lengths: Steps of each chain, shape (*batch,), in [1, T]; None if all have T. The padding may hold anything.
        algorithm: "sequential" (a loop over steps), "blocked" (over the steps of blocks of a chain, all blocks at
            once), "scan" (logarithmically many operations) or "auto".

    Returns:
        Shape (*batch,), nats; -inf where the data are impossible.

    Raises:
        ValueError: A shape, a length or the algorithm is not what it should be.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, equations 18 to 27.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> round(float(log_likelihood(initial, transition, emission).exp()), 6)
        0.03628
    """
    chains = prepare("log_likelihood", initial, transition, emission, lengths, algorithm)
    inputs = (chains.initial, chains.transition, chains.emission)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        result = _LogLikelihood.apply(*inputs, chains.detach(), algorithm)
    else:
        result = evidence(chains, algorithm)
    return result.to(emission.dtype).reshape(chains.batch)


class _LogLikelihood(torch.autograd.Function):
    """Forward and backward are the two passes of smoothing; derivatives of higher order go through plain autograd."""

    @staticmethod
    def forward(
        ctx: Any, initial: Tensor, transition: Tensor, emission: Tensor, chains: Chains, algorithm: str
    ) -> Tensor:
        ctx.save_for_backward(initial, transition, emission)
        ctx.chains = chains
        ctx.posterior = posterior(chains, algorithm)
        return ctx.posterior.log_likelihood.to(emission.dtype)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return *_differentiable(ctx.chains, ctx.saved_tensors, weights, wanted), None, None
        chains, found = ctx.chains, ctx.posterior
        initial = transition = emission = None
        if wanted[0] or wanted[2]:
            emission = found.marginals() * weights[:, None, None]
            initial = emission[:, 0]
            if len(chains.initial) == 1:
                initial = initial.sum(0, keepdim=True)
        if wanted[1]:
            transition = found.transitions(
                weights, per_step=not chains.homogeneous, sum_batch=len(chains.transition) == 1
            )
            transition = transition.reshape(chains.transition.shape)
        return initial, transition, emission, None, None


def _differentiable(
    chains: Chains, inputs: tuple[Tensor, ...], weights: Tensor, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """The gradients as functions of the inputs, of which autograd takes further derivatives."""
    initial, transition, emission = inputs
    value = log_evidence(replace(chains, initial=initial, transition=transition, emission=emission))
    possible = ~value.isneginf()
    targets = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
    found = iter(
        torch.autograd.grad(
            (torch.where(possible, value, 0.0) * weights).sum(), targets, create_graph=True, materialize_grads=True
        )
    )
    return [next(found) if want else None for want in wanted]
