"""Paths drawn from the posterior."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.chains.exact import pieces
from pyro_lvm.ops.chains.inputs import Chains, prepare
from pyro_lvm.ops.chains.paths import LOOP, follow
from pyro_lvm.ops.chains.posterior import posterior

__all__ = ["sample"]


def sample(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    num_samples: int,
    algorithm: str = "auto",
) -> Int[Tensor, "num_samples *batch T"]:
    """Paths of states drawn from p(states | x), by torch's generator. Arguments and errors are those of `smooth`.

    Args:
        initial: Log p(first state).
        transition: Log p(next state | previous state).
        emission: Log p(x_t | state).
        lengths: Steps of each chain, or None.
        num_samples: How many paths for each chain.
        algorithm: "sequential", "blocked", "scan" or "auto".

    Returns:
        The states, int64; -1 in the padding and where the data are impossible.

    Raises:
        ValueError: As `smooth`; or num_samples is negative.

    References:
        S. Scott (2002), Bayesian methods for hidden Markov models, Journal of the American Statistical Association 97.

    Example:
        >>> import torch
        >>> initial, alternate = torch.tensor([1.0, 0.0]).log(), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]).log()
        >>> sample(initial, alternate, torch.zeros(4, 2), num_samples=2)
        tensor([[0, 1, 0, 1],
                [0, 1, 0, 1]])
    """
    chains = prepare("sample", initial, transition, emission, lengths, algorithm).detach()
    if num_samples < 0:
        raise ValueError(f"sample: expected num_samples of at least 0; got {num_samples}.")
    found = posterior(chains, algorithm)
    chains, forward = chains.double(), found.log_forward()
    last = _draw(chains.at_last(forward).expand(num_samples, -1, -1), -1)
    if chains.num_steps <= LOOP:
        paths = _step_by_step(chains, forward, last)
    elif num_samples:
        paths = torch.stack([follow(_pointers(chains, forward), state) for state in last])
    else:
        paths = last.unsqueeze(-1).expand(-1, -1, chains.num_steps)
    paths = paths.masked_fill(found.log_likelihood.isneginf().unsqueeze(-1), -1)
    if chains.valid is not None:
        paths = paths.masked_fill(~chains.valid, -1)
    return paths.reshape(num_samples, *chains.batch, chains.num_steps)


def _draw(log_weights: Tensor, dim: int) -> Tensor:
    """Indices drawn in proportion to the exponentials: the smallest of exponential variates at these rates."""
    return (log_weights - torch.empty_like(log_weights).exponential_().log_()).argmax(dim)


def _step_by_step(chains: Chains, forward: Tensor, last: Tensor) -> Tensor:
    """Paths of shape (num_samples, N, T) that end in given states, each state drawn given the next one."""
    rows = torch.arange(chains.num_chains, device=last.device)
    matrices = rows if len(chains.transition) > 1 else torch.zeros_like(rows)
    paths = [last]
    for step in reversed(range(chains.num_steps - 1)):
        transition = chains.transition[:, 0 if chains.homogeneous else step].mT
        state = _draw(forward[:, step] + transition[matrices, paths[-1]], -1)
        if chains.valid is not None:
            state = torch.where(chains.valid[:, step + 1], state, paths[-1])
        paths.append(state)
    return torch.stack(paths[::-1], -1)


def _pointers(chains: Chains, forward: Tensor) -> Tensor:
    """A previous state drawn for each step and each next state, shape (N, T - 1, K)."""
    stay = torch.arange(chains.num_states, device=forward.device)
    pointers = stay.repeat(chains.num_chains, chains.num_steps - 1, 1)
    for steps in pieces(chains):
        transition = chains.transition if chains.homogeneous else chains.transition[:, steps]
        pointers[:, steps] = _draw(forward[:, steps].unsqueeze(-1) + transition, -2)
    if chains.valid is not None:
        pointers = torch.where(chains.valid[:, 1:, None], pointers, stay)
    return pointers
