r"""Hidden Markov chains by brute force: every path of states is written down and weighed.

Nothing here is recursive. The joint log-probability of each of the K^T paths is the plain sum of its terms, and every
quantity is a sum, a maximum or a sort over paths. Everything is differentiable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Paths", "all_paths"]


@dataclass(frozen=True)
class Paths:
    """All paths of one chain.

    Attributes:
        states: Shape (K ** T, T).
        log_joint: Log p(x, path), shape (K ** T,), nats.
        num_states: K.
    """

    states: Int[Tensor, "paths T"]
    log_joint: Float[Tensor, " paths"]
    num_states: int

    @property
    def log_likelihood(self) -> Float[Tensor, ""]:
        """Log p(x), nats."""
        possible = self.log_joint[self.log_joint > -torch.inf]
        return possible.logsumexp(0) if len(possible) else self.log_joint.new_tensor(-torch.inf)

    @property
    def probabilities(self) -> Float[Tensor, " paths"]:
        """p(path | x); zero if x is impossible."""
        evidence = self.log_likelihood
        return (self.log_joint - torch.where(evidence > -torch.inf, evidence, 0.0)).exp()

    @property
    def visits(self) -> Float[Tensor, "paths T K"]:
        """Ones where a path is in a state."""
        return torch.nn.functional.one_hot(self.states, self.num_states).to(self.log_joint.dtype)

    @property
    def marginals(self) -> Float[Tensor, "T K"]:
        """p(state at t | x)."""
        return torch.einsum("p,ptk->tk", self.probabilities, self.visits)

    @property
    def pairs(self) -> Float[Tensor, "steps K K"]:
        """p(state at t, state at t + 1 | x)."""
        visits = self.visits
        return torch.einsum("p,pti,ptj->tij", self.probabilities, visits[:, :-1], visits[:, 1:])

    def best(self, number: int) -> tuple[Int[Tensor, "number T"], Float[Tensor, " number"]]:
        """The possible paths of highest probability, at most `number`, and their log-probabilities."""
        log_joint, order = self.log_joint.sort(descending=True)
        order = order[log_joint > -torch.inf][:number]
        return self.states[order], self.log_joint[order]


def all_paths(
    initial: Float[Tensor, " K"],
    transition: Float[Tensor, "steps K K"],
    emission: Float[Tensor, "T K"],
) -> Paths:
    """Every path of one chain, without padding.

    Args:
        initial: Log p(first state).
        transition: Log p(next | previous) of one step or of all T - 1.
        emission: Log p(x_t | state).
    """
    num_steps, num_states = emission.shape
    states = torch.cartesian_prod(*[torch.arange(num_states)] * num_steps).reshape(-1, num_steps)
    transition = transition.expand(num_steps - 1, -1, -1) if num_steps > 1 else transition[:0]
    log_joint = initial[states[:, 0]] + emission[torch.arange(num_steps), states].sum(-1)
    steps = torch.arange(num_steps - 1)
    return Paths(states, log_joint + transition[steps, states[:, :-1], states[:, 1:]].sum(-1), num_states)
