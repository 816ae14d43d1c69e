r"""Laws known up to a factor: undirected models as distributions.

.. math:: p(v) = e^{-F(v)} / Z, \qquad \log p(v) = -F(v) - \log Z

:math:`F` is the free energy, :math:`\log Z` the log-normalizer, both in nats.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_lvm.ops.whole_number import whole_number

__all__ = ["EXACT_UNITS", "EnergyDistribution", "energy_law", "give_gradients"]

# States of so many units are summed over: about a million.
EXACT_UNITS = 20


class EnergyDistribution(TorchDistribution):
    r"""Base of the distributions given by an energy.

    A subclass gives the free energy, a Markov kernel, and the start of a path of laws; what it inherits is a density
    once the normalizer is known, draws by long chains, and steps of annealed importance sampling.

    `log_prob` has no side effects. Under `pyro_lvm.handlers.negative_phase` the normalizer is replaced by a surrogate
    whose gradient is estimated from Markov chains.

    Args:
        batch_shape: Of the parameters.
        event_shape: Of a value.
        log_normalizer: :math:`\log Z`, nats, if it is known; else it is summed up if the law is small.
        sample_steps: Gibbs steps of a draw where exact draws are out of reach.
        validate_args: Check arguments and values.

    References:
        Y. LeCun, S. Chopra, R. Hadsell, M. Ranzato, F. Huang (2006), A tutorial on energy-based learning.
    """

    def __init__(
        self,
        batch_shape: torch.Size,
        event_shape: torch.Size,
        *,
        log_normalizer: Tensor | float | None = None,
        sample_steps: int = 1000,
        validate_args: bool | None = None,
    ) -> None:
        self.given_log_normalizer = log_normalizer
        self.sample_steps = whole_number(type(self).__name__, "sample_steps", sample_steps)
        self.parameter_shape = batch_shape
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @abstractmethod
    def free_energy(self, value: Tensor) -> Tensor:
        """Minus the logarithm of the unnormalised density, nats, the shape of the batch."""

    @abstractmethod
    def gibbs(self, value: Tensor, num_steps: int = 1) -> Tensor:
        """Values after steps of a Markov chain that leaves the law invariant; no gradient flows through them."""

    @abstractmethod
    def annealed(self, inverse_temperature: float) -> EnergyDistribution:
        """The law at 0 <= `inverse_temperature` <= 1 of a path from the base to this law."""

    @abstractmethod
    def base_log_normalizer(self) -> Tensor:
        """The log-normalizer of the path's start, nats."""

    @abstractmethod
    def base_sample(self, count: int) -> Tensor:
        """Independent draws from the path's start, shape (count,) + batch + event."""

    @property
    def is_small(self) -> bool:
        """Whether the normalizer is summed up when it is not given."""
        return False

    def exact_log_normalizer(self) -> Tensor:
        """The log-normalizer by summation, nats; differentiable.

        Raises:
            ValueError: There are too many states.
        """
        raise ValueError(
            f"{type(self).__name__}: expected the log-normalizer of a law too large to sum up. Pass log_normalizer=, "
            "as estimated by lvm.evidence.annealed_importance_sampling, or train by lvm.infer.ContrastiveDivergence."
        )

    @property
    def log_normalizer(self) -> Tensor:
        """The log-normalizer as given, else by summation, nats.

        Raises:
            ValueError: It is neither given nor within reach.
        """
        if self.given_log_normalizer is not None:
            return torch.as_tensor(self.given_log_normalizer)
        return self.exact_log_normalizer()

    def with_log_normalizer(self, log_normalizer: Tensor | float | None) -> Self:
        """The same law with another statement of its normalizer."""
        other = copy.copy(self)
        other.given_log_normalizer = log_normalizer
        return other

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, nats, the shape of the batch."""
        if self._validate_args:
            self._validate_sample(value)
        density = -self.free_energy(value) - self.log_normalizer
        if density.shape == self.batch_shape:
            return density
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law in a larger batch; parameters stay as they are."""
        other = copy.copy(self)
        other._batch_shape = torch.Size(batch_shape)
        return other

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, shape sample + batch + event: exact if the law is small, else ends of chains of `sample_steps`."""
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            if self.is_small:
                return self._exact_sample(shape)
            if self.parameter_shape:  # one start for all: it is forgotten
                start = self.base_sample(1)[0].expand(shape + self.event_shape)
            else:
                start = self.base_sample(shape.numel()).reshape(shape + self.event_shape)
            return self.gibbs(start, self.sample_steps)

    def _exact_sample(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError

    def chain_start(self, value: Tensor) -> Tensor:
        """What a Markov chain that starts from values keeps from step to step."""
        return value

    def chain_steps(self, state: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Move chains.

        Args:
            state: As given by `chain_start`, or by this method.
            num_steps: Gibbs steps, >= 1.

        Returns:
            The values after the steps, and the chains' new state.
        """
        value = self.gibbs(state, num_steps)
        return value, value

    def contrast(self, rows: Tensor, state: Tensor | None, num_steps: int, scale: float) -> tuple[Tensor, Tensor]:
        """One gradient of contrastive divergence from rows alone; it is added to the `.grad` of parameters.

        Args:
            rows: What is learned from, shape (n,) + event.
            state: Of the chains, as given by `chain_start` or by this method; None if they start from the rows.
            num_steps: Gibbs steps, >= 1.
            scale: How often each row counts.

        Returns:
            Free energy of the rows less n times the mean over chains after their steps, times the scale, nats; and the
            chains' new state.
        """
        values, state = self.chain_steps(self.chain_start(rows) if state is None else state, num_steps)
        loss = scale * (self.free_energy(rows).sum() - len(rows) * self.free_energy(values).mean())
        if loss.requires_grad:
            loss.backward()
        return loss.detach(), state

    def for_annealing(self) -> EnergyDistribution:
        """A law with the same normalizer from which annealing estimates it with the least error: this one if unsaid."""
        return self

    def annealed_step(self, value: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        """One step of annealed importance sampling.

        Args:
            value: Values, shape (n, ...).
            beta: Inverse temperature that they come from.
            next_beta: Inverse temperature to go to.

        Returns:
            Values moved at `next_beta`, and the growth of the log-weight: the free energy of the old values at `beta`
            minus that at `next_beta`, nats, shape (n,).
        """
        after = self.annealed(next_beta)
        increment = self.annealed(beta).free_energy(value) - after.free_energy(value)
        return after.gibbs(value), increment


def give_gradients(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add gradients to the `.grad` of tensors that want them, or of what those were computed from."""
    inner = []
    for tensor, gradient in pairs:
        if not tensor.requires_grad:
            continue
        if tensor.is_leaf and tensor.grad is None:  # the usual case, without the engine
            tensor.grad = gradient
        else:
            inner.append((tensor, gradient))
    if inner:
        torch.autograd.backward([tensor for tensor, _ in inner], [gradient for _, gradient in inner])


@lru_cache(8)
def balanced_factors(rows: int, chains: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each of some rows counts for, and each of some chains, which take away as much in all."""
    factor = torch.full((rows + chains,), scale, dtype=dtype, device=device)
    factor[rows:] *= -rows / chains
    return factor


def energy_law(fn: Any) -> EnergyDistribution | None:
    """The energy distribution inside of masks and further event dimensions, if there is one."""
    while not isinstance(fn, EnergyDistribution):
        fn = getattr(fn, "base_dist", None)
        if fn is None:
            return None
    return fn
