"""Hidden Markov laws whose tables are made of smaller ones: chains side by side, and states that last.

Both are hidden Markov models over a product of small spaces, with log-tables that are sums of the logarithms of smaller
categorical laws. That sum is all that an E-step needs to know (`HMM.assemble`): it is linear, so the posterior weights
of the small laws are its transpose applied to those of the large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.state_laws import StateLaw, exact_log_probs

__all__ = ["FactorialHMM", "HiddenSemiMarkov", "split_states"]


class _AssembledHMM(HMM):
    """A hidden Markov law over the positions that its small laws span."""

    small: dict[str, StateLaw]

    def _assemble_all(self, emission: Any, options: dict[str, Any]) -> None:
        initial, transition = self.assemble({name: exact_log_probs(law.fn) for name, law in self.small.items()})
        super().__init__(initial_logits=initial, transition_logits=transition, emission=emission, **options)

    @property
    def laws(self) -> dict[str, StateLaw]:
        """The small laws."""
        return self.small


class FactorialHMM(_AssembledHMM):
    r"""Sequences whose steps depend on the states of M Markov chains that run side by side.

    .. math:: p(x, z) = \prod_m \Bigl(\pi_{m, z_{m1}} \prod_{t>1} A_{m, z_{m,t-1}, z_{mt}}\Bigr)
        \prod_t p(x_t \mid z_{1t}, \dots, z_{Mt})

    As a hidden Markov law its state is that of all chains together, numbered with the last chain's counting fastest,
    out of :math:`S = K_1 \cdots K_M`; `split` and `join` translate. The exact posterior takes time in proportion to
    :math:`S^2`.

    ==================  =============================================  =================================
    symbol              meaning                                        shape
    ==================  =============================================  =================================
    :math:`\pi_m`       `initial_probs[m]`                             batch + (K_m,)
    :math:`A_m`         `transition_probs[m]`, row by previous state   (K_m, K_m), or batch + (1 or T - 1, K_m, K_m)
    :math:`p(x \mid z)` `emission`, a distribution                     batch shape (S,), or batch + (1 or T, S)
    ==================  =============================================  =================================

    Args:
        initial_probs: Law of the first state of every chain.
        transition_probs: Law of the next state of every chain.
        emission: Law of a step in every joint state, those along the last batch dimension.
        options: `num_steps`, `lengths`, `known_states` (joint ones) and `validate_args`, as `HMM` takes them.

    Raises:
        ValueError: Shapes do not fit.

    References:
        Z. Ghahramani, M. Jordan (1997), Factorial hidden Markov models, Machine Learning 29, equations 1 to 3.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_lvm.distributions import FactorialHMM
        >>> first, moves = torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        >>> loc = torch.tensor([0.0, 1.0, 10.0, 11.0])  # the first chain adds 10, the second 1
        >>> law = FactorialHMM([first, first], [moves, moves], dist.Normal(loc, 0.5))
        >>> law.split(law.viterbi(torch.tensor([0.1, 1.2, 10.9])))
        tensor([[0, 0],
                [0, 1],
                [1, 1]])
    """

    def __init__(
        self,
        initial_probs: Sequence[Float[Tensor, "*batch k"]],
        transition_probs: Sequence[Float[Tensor, "*batch k k"]],
        emission: Any,
        **options: Any,
    ) -> None:
        if not len(initial_probs) or len(initial_probs) != len(transition_probs):
            raise ValueError(
                "FactorialHMM: expected initial_probs and transition_probs of as many chains, at least one; got "
                f"{len(initial_probs)} and {len(transition_probs)}."
            )
        self.small = {}
        for m, (first, moves) in enumerate(zip(initial_probs, transition_probs, strict=True)):
            if moves.dim() < 2 or moves.shape[-1] != moves.shape[-2] or moves.shape[-1] != first.shape[-1]:
                raise ValueError(
                    f"FactorialHMM: expected transition_probs[{m}] to be a square matrix over the {first.shape[-1]} "
                    f"states of initial_probs[{m}]; got shape {tuple(moves.shape)}."
                )
            self.small[f"initial_{m}"] = StateLaw(dist.Categorical(first, validate_args=options.get("validate_args")))
            self.small[f"transition_{m}"] = _moves(moves, options)
        self.sizes = tuple(int(first.shape[-1]) for first in initial_probs)
        self._assemble_all(emission, options)

    def assemble(self, tables: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sums over chains."""
        chains = range(len(self.sizes))
        initial = reduce(_outer_sum, (tables[f"initial_{m}"] for m in chains))
        return initial, reduce(_outer_sum_of_squares, (tables[f"transition_{m}"] for m in chains))

    def split(self, states: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape m"]:
        """The state of every chain, along a new last axis, of joint states; -1 remains."""
        return split_states(states, self.sizes)

    def join(self, states: Int[Tensor, "*shape m"]) -> Int[Tensor, "*shape"]:
        """Joint states of those of every chain; -1 where one of them is."""
        joint = torch.zeros_like(states[..., 0])
        for m, size in enumerate(self.sizes):
            joint = joint * size + states[..., m]
        return torch.where((states >= 0).all(-1), joint, -1)

    def by_chain(self, probabilities: Float[Tensor, "*shape s"]) -> list[Float[Tensor, "*shape k"]]:
        """Marginal probabilities of every chain's states, of those of joint ones."""
        table = probabilities.unflatten(-1, self.sizes)
        axes = range(-len(self.sizes), 0)
        return [table.sum([axis for axis in axes if axis != kept]) if len(axes) > 1 else table for kept in axes]


class HiddenSemiMarkov(_AssembledHMM):
    r"""Sequences of K hidden states that last for as many steps as laws of their own say: durations are explicit.

    .. math::

        z \sim \pi, \quad r \mid z \sim d_z, \quad \text{then } r \text{ steps } x_t \sim p(x \mid z), \quad
        z' \mid z \sim A_z, \quad \dots

    The first state begins with the first step, and the last may be cut by the end of the sequence: its duration is
    then only known to be at least what is seen of it (right-censored). As a hidden Markov law its positions are pairs
    of a state and the number of steps, 1 to D, that are still to come in it, this one included. Whatever is told about
    states (`smooth`, `viterbi`, `clamp`, ...) is about the K states; `transitions` of `smooth` count stays as well. The
    posterior takes time in proportion to :math:`(K D)^2`.

    ==================  =============================================  =====================================
    symbol              meaning                                        shape
    ==================  =============================================  =====================================
    :math:`\pi`         `initial_probs`                                batch + (K,)
    :math:`A`           `transition_probs`, row by previous state      (K, K), or batch + (1 or T - 1, K, K)
    :math:`d`           `duration_probs` of 1, 2, ..., D steps         batch + (K, D)
    :math:`p(x \mid z)` `emission`, a distribution                     batch shape (K,), or batch + (1 or T, K)
    ==================  =============================================  =====================================

    Args:
        initial_probs: Law of the first state.
        transition_probs: Law of the next state once one has ended. Its diagonal is zero if states end for good.
        duration_probs: Law of the number of steps in a state.
        emission: Law of a step in every state, states along the last batch dimension.
        options: `num_steps`, `lengths`, `known_states` and `validate_args`, as `HMM` takes them.

    Raises:
        ValueError: Shapes do not fit.

    References:
        S.-Z. Yu (2010), Hidden semi-Markov models, Artificial Intelligence 174, section 3.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_lvm.distributions import HiddenSemiMarkov
        >>> durations = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # three steps, then two
        >>> moves = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> law = HiddenSemiMarkov(torch.ones(2) / 2, moves, durations, dist.Normal(torch.tensor([0.0, 1.0]), 1.0))
        >>> law.viterbi(torch.tensor([0.2, 0.7, -0.1, 0.4, 1.2, 0.6]))
        tensor([0, 0, 0, 1, 1, 0])
    """

    def __init__(
        self,
        initial_probs: Float[Tensor, "*batch k"],
        transition_probs: Float[Tensor, "*batch k k"],
        duration_probs: Float[Tensor, "*batch k d"],
        emission: Any,
        **options: Any,
    ) -> None:
        k = initial_probs.shape[-1]
        if transition_probs.dim() < 2 or transition_probs.shape[-2:] != (k, k):
            raise ValueError(
                f"HiddenSemiMarkov: expected transition_probs to end in ({k}, {k}), as there are {k} initial_probs; "
                f"got shape {tuple(transition_probs.shape)}."
            )
        if duration_probs.dim() < 2 or duration_probs.shape[-2] != k or not duration_probs.shape[-1]:
            raise ValueError(
                f"HiddenSemiMarkov: expected duration_probs of shape ({k}, D), a row for each state; got shape "
                f"{tuple(duration_probs.shape)}."
            )
        validate = options.get("validate_args")
        self.small = {
            "initial": StateLaw(dist.Categorical(initial_probs, validate_args=validate)),
            "transition": _moves(transition_probs, options),
            "duration": StateLaw(dist.Categorical(duration_probs, validate_args=validate), 1, of_states=False),
        }
        self.max_duration = int(duration_probs.shape[-1])
        self.state_of = torch.arange(k, device=initial_probs.device).repeat_interleave(self.max_duration)
        self._assemble_all(emission, options)

    def assemble(self, tables: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """New states come with their duration; those that last count down."""
        following, duration = tables["transition"], tables["duration"]
        initial = (tables["initial"].unsqueeze(-1) + duration).flatten(-2)
        entered = (following.unsqueeze(-1) + duration.unsqueeze(-3).unsqueeze(-4)).flatten(-2)
        k, d = duration.shape[-2:]
        lasting = torch.arange(k * d, device=duration.device).unflatten(0, (k, d))[:, 1:]
        counted = torch.full((k, d - 1, k * d), -torch.inf, dtype=duration.dtype, device=duration.device)
        counted = counted.scatter(-1, lasting.unsqueeze(-1) - 1, 0.0)
        counted = counted.expand(*entered.shape[:-2], k, d - 1, k * d)
        return initial, torch.cat([entered.unsqueeze(-2), counted], -2).flatten(-3, -2)


def split_states(states: Int[Tensor, "*shape"], sizes: Sequence[int]) -> Int[Tensor, "*shape m"]:
    """Joint states as one state for each of several spaces, the last counting fastest; -1 remains.

    Args:
        states: Joint states.
        sizes: Numbers of states of the spaces.
    """
    digits = []
    for size in reversed(sizes):
        digits.append(torch.where(states >= 0, states % size, -1))
        states = torch.where(states >= 0, states.div(size, rounding_mode="floor"), -1)
    return torch.stack(digits[::-1], -1)


def _moves(probs: Tensor, options: dict[str, Any]) -> StateLaw:
    """A law of transitions, with an axis of steps."""
    probs = probs.unsqueeze(0) if probs.dim() == 2 else probs
    return StateLaw(dist.Categorical(probs, validate_args=options.get("validate_args")), 1, True)


def _outer_sum(one: Tensor, other: Tensor) -> Tensor:
    """All sums of two last axes, as one."""
    return (one.unsqueeze(-1) + other.unsqueeze(-2)).flatten(-2)


def _outer_sum_of_squares(one: Tensor, other: Tensor) -> Tensor:
    """The same for square matrices: all sums of entries, pairs of rows by pairs of columns."""
    total = one.unsqueeze(-1).unsqueeze(-3) + other.unsqueeze(-2).unsqueeze(-4)
    return total.flatten(-2).flatten(-3, -2)
