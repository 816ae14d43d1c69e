r"""A hidden Markov model as a distribution over whole sequences, its states summed out.

.. math:: p(x_{1:T}) = \sum_{z_{1:T}} \pi_{z_1} \prod_{t>1} A_{z_{t-1} z_t} \prod_t p(x_t \mid z_t)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.state_laws import StateLaw, exact_log_probs, restrict
from pyro_lvm.ops import chains
from pyro_lvm.ops.missing import has_gaps

__all__ = ["HMM"]


# Rows of probabilities whose sum is further from one than this are not rounded, but wrong.
ROUNDED = 1e-3


def _check_sums(name: str, probs: Tensor | None) -> None:
    """Raise a ValueError for rows of probabilities that do not sum to one: laws would quietly normalise them."""
    if probs is None:
        return
    rows = probs.detach().reshape(-1, probs.shape[-1])
    wrong = (rows.sum(-1) - 1).abs() > ROUNDED
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"HMM: expected {name} whose rows sum to one; row {row} sums to {float(rows[row].sum()):.4g}. "
            "Normalise it, or pass logits."
        )


class HMM(TorchDistribution):
    r"""Sequences whose steps come from K hidden states that follow one another as a Markov chain.

    The first state follows `initial_probs`; the law of `pyro.distributions.DiscreteHMM` makes one transition before
    the first observation (`to_discrete_hmm` and `from_discrete_hmm` convert). States are summed out by the kernel of
    `pyro_lvm.ops.chains`; `smooth`, `viterbi` and `sample_states` tell about them, `forecast` about steps to come.

    ==================  ==================================  ==========================================
    symbol              meaning                             shape
    ==================  ==================================  ==========================================
    :math:`\pi`         `initial_probs` or `_logits`        batch + (K,)
    :math:`A`           `transition_probs` or `_logits`     (K, K), or batch + (1 or T - 1, K, K)
    :math:`p(x \mid z)` `emission`, a distribution          batch shape (K,), or batch + (1 or T, K)
    ==================  ==================================  ==========================================

    A step whose entries are all NaN is missing and summed out.

    In subclasses the chain may have more positions than there are states (`state_of` says which state each stands
    for), and its tables may be made of smaller ones (`laws`, `assemble`); here they are the same.

    Args:
        initial_probs: Law of the first state; normalised.
        transition_probs: Law of the next state, row by previous state; normalised. Time stands third from the right.
        emission: Law of a step in every state, states along the last batch dimension.
        initial_logits: In place of `initial_probs`.
        transition_logits: In place of `transition_probs`.
        num_steps: Number of steps T; may be left out if an argument has a time axis, or if only `log_prob` is asked.
        lengths: Number of steps of every sequence, integers, the batch's shape; later steps are padding.
        known_states: State of every step where it is known, -1 where not, integers, batch + (T,).

    Raises:
        ValueError: An argument is missing, or shapes do not fit.

    References:
        L. Rabiner (1989), A tutorial on hidden Markov models, Proceedings of the IEEE 77, equations 13-28.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_lvm.distributions import HMM
        >>> switch = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> hmm = HMM(torch.tensor([0.5, 0.5]), switch, dist.Normal(torch.tensor([0.0, 3.0]), 1.0))
        >>> hmm.viterbi(torch.tensor([0.1, -0.3, 2.8, 3.1]))
        tensor([0, 0, 1, 1])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # the parts check their own
    state_of: Tensor | None = None

    def __init__(
        self,
        initial_probs: Float[Tensor, "*batch k"] | None = None,
        transition_probs: Float[Tensor, "*batch k k"] | None = None,
        emission: Any = None,
        *,
        initial_logits: Float[Tensor, "*batch k"] | None = None,
        transition_logits: Float[Tensor, "*batch k k"] | None = None,
        num_steps: int | None = None,
        lengths: Int[Tensor, "*batch"] | None = None,
        known_states: Int[Tensor, "*batch t"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (initial_probs is None) == (initial_logits is None):
            raise ValueError("HMM: expected initial_probs or initial_logits. Pass one of them.")
        if (transition_probs is None) == (transition_logits is None):
            raise ValueError("HMM: expected transition_probs or transition_logits. Pass one of them.")
        if emission is None:
            raise ValueError("HMM: expected an emission, a distribution with states along its last batch dimension.")
        transition = transition_probs if transition_logits is None else transition_logits
        if transition.dim() < 2 or transition.shape[-1] != transition.shape[-2]:  # type: ignore[union-attr]
            shape = tuple(transition.shape)  # type: ignore[union-attr]
            raise ValueError(f"HMM: expected square matrices of transitions, one row a state; got shape {shape}.")
        if transition.dim() == 2:  # type: ignore[union-attr]
            transition = transition.unsqueeze(0)  # type: ignore[union-attr]
        kind = "probs" if transition_logits is None else "logits"
        self.transition = dist.Categorical(**{kind: transition}, validate_args=validate_args)
        self.initial = dist.Categorical(probs=initial_probs, logits=initial_logits, validate_args=validate_args)
        self.emission = emission
        self.lengths = lengths
        self.known_states = known_states
        self.num_positions = self.transition.param_shape[-1]
        self.num_states = self.num_positions if self.state_of is None else int(self.state_of.max()) + 1
        self._check_states()
        self._emission_batch = emission.batch_shape[:-1] or torch.Size([1])
        times = {self.transition.batch_shape[-2] + 1, self._emission_batch[-1], num_steps or 1}
        if self.transition.batch_shape[-2] == 1:
            times.discard(2)
        if known_states is not None:
            times.add(known_states.shape[-1])
        times -= {1}
        if len(times) > 1:
            raise ValueError(f"HMM: expected one number of steps; got {sorted(times)} from its arguments.")
        self.num_steps = max(times, default=num_steps)
        batch = torch.broadcast_shapes(
            self.initial.batch_shape,
            self.transition.batch_shape[:-2],
            self._emission_batch[:-1],
            () if lengths is None else lengths.shape,
            () if known_states is None else known_states.shape[:-1],
        )
        event = torch.Size((self.num_steps or 1, *emission.event_shape))
        super().__init__(batch, event, validate_args=validate_args)
        if self._validate_args:
            _check_sums("initial_probs", initial_probs)
            _check_sums("transition_probs", transition_probs)

    def _check_states(self) -> None:
        emission = (self.emission.batch_shape or (1,))[-1]
        found = {"initial": (self.initial.param_shape[-1], self.num_positions), "emission": (emission, self.num_states)}
        for name, (size, k) in found.items():
            if size != k:
                raise ValueError(
                    f"HMM: expected {name} over {k} states, as the transitions; got {size}. States stand along the "
                    "last dimension."
                )

    @property
    def laws(self) -> dict[str, StateLaw]:
        """The categorical laws that the chain's tables are made of, by name."""
        return {"initial": StateLaw(self.initial), "transition": StateLaw(self.transition, 1, True)}

    def assemble(self, tables: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The chain's log-probabilities of the first position and of moves, linear in those of `laws`."""
        return tables["initial"], tables["transition"]

    def spread(self, density: Tensor) -> Tensor:
        """What depends on the state, along the last axis, for every position of the chain."""
        return density if self.state_of is None else density[..., self.state_of]

    def collect(self, probabilities: Tensor, axis: int = -1) -> Tensor:
        """Probabilities of states from those of the chain's positions."""
        if self.state_of is None:
            return probabilities
        shape = list(probabilities.shape)
        shape[axis] = self.num_states
        return probabilities.new_zeros(shape).index_add_(axis, self.state_of, probabilities)

    def states_on(self, path: Tensor) -> Tensor:
        """The states of positions; -1 remains."""
        return path if self.state_of is None else torch.where(path >= 0, self.state_of[path.clamp_min(0)], -1)

    @property
    def support(self) -> constraints.Constraint:
        """That of the emission, at every step."""
        return constraints.independent(self.emission.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HMM:
        """The same law over a larger batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def clamp(self, states: Tensor, known: Tensor | None = None) -> HMM:
        """The same law, some of its states known.

        Args:
            states: State of every step, batch + (T,); -1 where it is not known.
            known: Which of them are known, True or False; all that are >= 0 if None.
        """
        states = states.long() if known is None else torch.where(known, states, -1.0).long()
        states = states.expand(torch.broadcast_shapes(states.shape, (*self.batch_shape, 1)))
        new = self.expand(self.batch_shape)
        new.known_states = states
        new.num_steps = states.shape[-1]
        TorchDistribution.__init__(
            new, self.batch_shape, (states.shape[-1], *self.event_shape[1:]), validate_args=False
        )
        return new

    def tables(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The chain's log-probabilities: of the first state, of transitions, of every step at every position, nats.

        Args:
            value: Sequences, batch + (T,) + event.
        """
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - self.event_dim])
        value, known = self.steps(value)
        density = self.emission.log_prob(value.unsqueeze(value.dim() - self.emission.event_dim))
        density = density.expand(*batch, value.shape[len(value.shape) - self.event_dim], self.num_states)
        if known is not None:
            density = torch.where(known.unsqueeze(-1), density, 0.0)
        density = self.spread(restrict(density, self.known_states))
        return exact_log_probs(self.initial), exact_log_probs(self.transition), density

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values with something inside the support at missing steps and in padding, and which are there (None: all)."""
        known = None
        if value.is_floating_point() and has_gaps(value):
            missing = value.isnan()
            known = ~(missing.flatten(-self.emission.event_dim).all(-1) if self.emission.event_dim else missing)
        total = value.shape[value.dim() - self.event_dim]
        if self.lengths is not None and bool((self.lengths < total).any()):
            inside = torch.arange(total, device=value.device) < self.lengths.unsqueeze(-1)
            known = inside if known is None else known & inside
        if known is None:
            return value, None
        batch = torch.broadcast_shapes(known.shape, value.shape[: value.dim() - self.emission.event_dim])
        value, known = value.expand(*batch, *self.emission.event_shape), known.expand(batch)
        events = known.reshape(known.shape + (1,) * self.emission.event_dim)
        example = value[known][0] if bool(known.any()) else self._inside_support(value)
        return torch.where(events, value, example), known

    def num_observed(self, value: Tensor) -> Tensor:
        """How many steps of each sequence are known, shape batch."""
        known = self.steps(value)[1]
        if known is None:
            return torch.full(value.shape[: value.dim() - self.event_dim], value.shape[value.dim() - self.event_dim])
        return known.sum(-1)

    def _inside_support(self, value: Tensor) -> Tensor:
        """Some value of a step: none is known."""
        laws = self.emission.sample()
        return laws.reshape(-1, *self.emission.event_shape)[0].to(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of whole sequences, states summed out, shape batch, nats."""
        return chains.log_likelihood(*self.tables(value), self._lengths(value))

    def smooth(self, value: Tensor, pairwise: bool = False) -> chains.Smoothed:
        """Posterior of the states given whole sequences."""
        found = chains.smooth(*self.tables(value), self._lengths(value), pairwise=pairwise)
        moves = self.collect(self.collect(found.transitions), -2)
        return replace(found, marginals=self.collect(found.marginals), transitions=moves)

    def filter(self, value: Tensor) -> Tensor:
        """Law of every state given the steps up to its own, batch + (T, K)."""
        return self.collect(chains.filter(*self.tables(value), self._lengths(value)).probabilities)

    def viterbi(self, value: Tensor, num_best: int = 1) -> Tensor:
        """The most probable states, batch + (T,), or batch + (num_best, T) best first if asked; -1 in padding."""
        return self.states_on(chains.viterbi(*self.tables(value), self._lengths(value), num_best=num_best)[0])

    def sample_states(self, value: Tensor, num_samples: int = 1) -> Tensor:
        """States drawn from their posterior, (num_samples,) + batch + (T,); -1 in padding."""
        return self.states_on(chains.sample(*self.tables(value), self._lengths(value), num_samples=num_samples))

    def forecast_states(self, value: Tensor, steps: int) -> Tensor:
        """Laws of the states that follow the last step, batch + (steps, K)."""
        return self.collect(chains.predict(*self.tables(value), self._lengths(value), horizon=steps))

    def _lengths(self, value: Tensor) -> Tensor | None:
        if self.lengths is None:
            return None
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - self.event_dim])
        return self.lengths.expand(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw sequences of `num_steps` steps; padding holds draws too."""
        return self.sample_with_states(sample_shape)[0]

    @torch.no_grad()
    def sample_with_states(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw sequences and the states that they come from."""
        total = self.num_steps
        if total is None:
            raise ValueError("HMM.sample: expected num_steps, the number of steps to draw. Pass HMM(..., num_steps=).")
        shape = torch.Size((*sample_shape, *self.batch_shape))
        state = self.initial.expand(self.batch_shape).sample(sample_shape)
        laws = self.transition.probs.expand(*shape, -1, self.num_positions, self.num_positions)
        states = [state]
        for t in range(total - 1):
            law = laws[..., min(t, laws.shape[-3] - 1), :, :]
            rows = law.gather(-2, state[..., None, None].expand(*shape, 1, self.num_positions)).squeeze(-2)
            state = torch.distributions.Categorical(rows, validate_args=False).sample()
            states.append(state)
        path = self.states_on(torch.stack(states, -1))
        if self.known_states is not None:
            path = torch.where(self.known_states >= 0, self.known_states, path)
        values = self.emission.expand(torch.Size((*shape, total, self.num_states))).sample()
        index = path.reshape(*path.shape, 1, *([1] * self.emission.event_dim))
        index = index.expand(*path.shape, 1, *self.emission.event_shape)
        return values.gather(path.dim(), index).squeeze(path.dim()), path

    def to_discrete_hmm(self) -> dist.DiscreteHMM:
        """The same law by Pyro's convention: a transition from any state to the first one comes first.

        Raises:
            ValueError: The number of steps is not known, sequences are ragged, or positions share their emission.
        """
        if self.num_steps is None or self.lengths is not None or self.state_of is not None:
            raise ValueError(
                "HMM.to_discrete_hmm: expected a known num_steps, no lengths, and an emission for every position of "
                "the chain. Pass num_steps=."
            )
        k = self.num_states
        first = self.initial.logits.unsqueeze(-2).unsqueeze(-2)
        rest = self.transition.logits
        batch = torch.broadcast_shapes(first.shape[:-3], rest.shape[:-3])
        first = first.expand(*batch, 1, k, k)
        rest = rest.expand(*batch, self.num_steps - 1, k, k)
        uniform = torch.zeros(k).to(first)
        return dist.DiscreteHMM(uniform, torch.cat([first, rest], -3), self.emission, duration=self.num_steps)

    @classmethod
    def from_discrete_hmm(cls, hmm: dist.DiscreteHMM) -> HMM:
        """From Pyro's convention: the law of its first observed state is the initial one."""
        moves = hmm.transition_logits
        moves = moves.unsqueeze(0) if moves.dim() == 2 else moves
        first = (hmm.initial_logits.unsqueeze(-1) + moves[..., 0, :, :]).logsumexp(-2)
        rest = moves[..., 1:, :, :] if moves.shape[-3] > 1 else moves
        steps = hmm.duration if hmm.duration is not None else (moves.shape[-3] if moves.shape[-3] > 1 else None)
        return cls(initial_logits=first, transition_logits=rest, emission=hmm.observation_dist, num_steps=steps)
