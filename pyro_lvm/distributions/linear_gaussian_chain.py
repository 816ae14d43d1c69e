r"""Sequences from normal states that follow one another linearly, as a distribution with its states summed out."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.ops.dynamics_updates import DynamicsStatistics, dynamics_statistics
from pyro_lvm.ops.kalman import Filtered, filter_means
from pyro_lvm.ops.kalman_gains import LinearDynamics, gains_of
from pyro_lvm.ops.kalman_smoother import Smoothed, kalman_smoother, sample_dynamics, sample_states
from pyro_lvm.ops.sequence_patterns import sequence_patterns

__all__ = ["LinearGaussianChain", "StepLaw"]


class StepLaw(NamedTuple):
    """The law of some steps of n sequences given all that is known of these, in double precision.

    Attributes:
        states: Means of the states, shape (n, m, k).
        state_covariance: Their covariances, shape (n, m, k, k).
        mean: Means of the values, shape (n, m, d).
        level_covariance: Covariances of their levels, b + C h, shape (n, m, d, d).
        covariance: Those of the values as measured anew, with noise, shape (n, m, d, d).
        samples: Draws of such values, shape (s, n, m, d).
        paths: The states that they come from, shape (s, n, m, k).
    """

    states: Tensor
    state_covariance: Tensor
    mean: Tensor
    level_covariance: Tensor
    covariance: Tensor
    samples: Tensor
    paths: Tensor


class LinearGaussianChain(TorchDistribution):
    r"""A linear dynamical system: sequences whose steps are noisy linear maps of states that move linearly.

    .. math::

        h_1 \sim \mathrm{Normal}(m_0, P_0), \quad h_{t+1} \mid h_t \sim \mathrm{Normal}(A h_t, Q), \quad
        x_t \mid h_t \sim \mathrm{Normal}(b + C h_t, \mathrm{diag}(\sigma^2))

    ==================  ======================================  =========  ========================
    symbol              meaning                                 shape      argument
    ==================  ======================================  =========  ========================
    :math:`A`           transition, next state by previous one  (k, k)     `transition`
    :math:`C`           weights                                 (d, k)     `weight`
    :math:`\sigma`      standard deviations of the noise        (d,)       `noise_scale`
    :math:`b`           mean of steps at the state zero         (d,)       `loc`
    :math:`Q`           covariance of moves                     (k, k)     `transition_covariance`
    :math:`m_0`         mean of the first state                 (k,)       `initial_loc`
    :math:`P_0`         covariance of the first state           (k, k)     `initial_covariance`
    ==================  ======================================  =========  ========================

    The exact log-density, differentiable in all of them, by the Kalman filter of `pyro_lvm.ops.kalman`, in double
    precision. Entries that are NaN are missing and summed out, single ones or whole steps. Covariances may be singular,
    the noise may not be zero.

    Args:
        transition: A.
        weight: C.
        noise_scale: Positive.
        loc: b; zeros by default.
        transition_covariance: Q; the identity by default.
        initial_loc: Zeros by default.
        initial_covariance: The identity by default; large numbers for a diffuse start.
        num_steps: T, which only `sample` needs.
        lengths: Number of steps of every sequence, integers, the batch's shape; later steps are padding.
        num_shown: How many coordinates of states, the first ones, `latent_mean`, `filter` and `posterior_sample` tell;
            all if None.

    Attributes:
        summed_out: What latent variables the law sums out, in a word; plans go by it.
        latent: What they are called among draws from their posterior.

    Raises:
        ValueError: Shapes do not fit.

    References:
        R. Kalman (1960), A new approach to linear filtering and prediction problems, Journal of Basic Engineering 82.
        H. Rauch, F. Tung, C. Striebel (1965), Maximum likelihood estimates of linear dynamic systems, AIAA Journal 3.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import LinearGaussianChain
        >>> one = torch.ones(1, 1)
        >>> law = LinearGaussianChain(0.9 * one, one, torch.tensor([0.5]))
        >>> x = torch.tensor([[0.1], [torch.nan], [0.4]])
        >>> law.latent_mean(x).shape
        torch.Size([3, 1])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "weight": constraints.independent(constraints.real, 2),
        "noise_scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.independent(constraints.real, 2)
    summed_out, latent = "normal states", "h"

    def __init__(
        self,
        transition: Float[Tensor, "k k"],
        weight: Float[Tensor, "d k"],
        noise_scale: Float[Tensor, " d"],
        loc: Float[Tensor, " d"] | None = None,
        *,
        transition_covariance: Float[Tensor, "k k"] | None = None,
        initial_loc: Float[Tensor, " k"] | None = None,
        initial_covariance: Float[Tensor, "k k"] | None = None,
        num_steps: int | None = None,
        lengths: Int[Tensor, "*batch"] | None = None,
        num_shown: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if weight.dim() != 2:
            raise ValueError(
                f"LinearGaussianChain: expected weight of shape (d, k); got {tuple(weight.shape)}. "
                "Give one row for each column of the steps."
            )
        d, k = weight.shape
        eye = torch.eye(k, dtype=weight.dtype, device=weight.device)
        self.transition, self.weight, self.noise_scale = transition, weight, noise_scale
        self.loc = weight.new_zeros(d) if loc is None else loc
        self.transition_covariance = eye if transition_covariance is None else transition_covariance
        self.initial_loc = weight.new_zeros(k) if initial_loc is None else initial_loc
        self.initial_covariance = eye if initial_covariance is None else initial_covariance
        shapes = {"transition": (k, k), "noise_scale": (d,), "loc": (d,), "transition_covariance": (k, k)}
        for name, shape in {**shapes, "initial_loc": (k,), "initial_covariance": (k, k)}.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(
                    f"LinearGaussianChain: expected {name} of shape {shape}, as weight has shape {(d, k)}; got {got}. "
                    "Reshape it."
                )
        self.num_steps, self.lengths, self.num_shown = num_steps, lengths, num_shown
        self._last: tuple[Tensor, int, Filtered] | None = None
        batch = torch.Size() if lengths is None else lengths.shape
        super().__init__(batch, torch.Size((num_steps or 1, d)), validate_args=validate_args)

    @property
    def dynamics(self) -> LinearDynamics:
        """The law's numbers, in double precision."""
        parts = (
            self.initial_loc,
            self.initial_covariance,
            self.transition,
            self.transition_covariance,
            self.loc,
            self.weight,
            self.noise_scale.double().square(),
        )
        return LinearDynamics(*(part.double() for part in parts))

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearGaussianChain:
        """The same law over a larger batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def lasting(self, num_steps: int) -> LinearGaussianChain:
        """The same law, to draw sequences of so many steps."""
        new = self.expand(self.batch_shape)
        new.num_steps = num_steps
        event = torch.Size((num_steps, len(self.weight)))
        TorchDistribution.__init__(new, self.batch_shape, event, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of whole sequences, states and missing entries summed out, shape batch, nats."""
        batch, x, lengths = self._flat(value)
        return self._filtered(x, lengths).log_likelihood.reshape(batch).to(self.weight.dtype)

    def smooth(self, value: Tensor) -> Smoothed:
        """Posterior of the states given whole sequences, in double precision, steps first and the batch in one axis."""
        _, x, lengths = self._flat(value)
        return kalman_smoother(self.dynamics, x.double(), lengths, self._filtered(x, lengths))

    def latent_mean(self, value: Tensor) -> Tensor:
        """Means of the states given whole sequences, batch + (T, k); 0 in padding."""
        return self._inside(self._loc(value), value)[..., : self.num_shown].to(self.weight.dtype)

    def filter(self, value: Tensor) -> Tensor:
        """Means of the states given the steps up to their own, batch + (T, k); 0 in padding."""
        batch, x, lengths = self._flat(value)
        loc = self._filtered(x, lengths).loc.transpose(0, 1).reshape(*batch, x.shape[1], -1)
        return self._inside(loc, value)[..., : self.num_shown].to(self.weight.dtype)

    def conditional_mean(self, value: Tensor) -> Tensor:
        """Means of all entries of the steps given those that are known, as if each were measured anew."""
        dynamics = self.dynamics
        return (dynamics.loc + self._loc(value) @ dynamics.weight.mT).to(self.weight.dtype)

    @torch.no_grad()
    def posterior_sample(self, value: Tensor, count: int) -> Tensor:
        """States drawn given whole sequences, (count,) + batch + (T, k); 0 in padding."""
        batch, x, lengths = self._flat(value)
        draws = sample_states(self.dynamics, x.double(), lengths, count, self._filtered(x, lengths))
        draws = draws.reshape(count, *batch, *draws.shape[2:])
        return self._inside(draws, value)[..., : self.num_shown].to(self.weight.dtype)

    @torch.no_grad()
    def steps_at(self, value: Tensor, place: Tensor, count: int = 0) -> StepLaw:
        """The law of some steps given whole sequences: a forecast where these end in steps of which nothing is known.

        Args:
            value: Sequences, shape (n, T, d).
            place: Which steps of each, shape (n, m).
            count: Number of draws.
        """
        _, x, lengths = self._flat(value)
        smoothed, dynamics, group = self.smooth(value), self.dynamics, sequence_patterns(x, lengths).group
        rows = torch.arange(len(x), device=x.device).unsqueeze(-1)
        states = smoothed.loc[place, rows]
        spread = smoothed.covariance[place, 0 if group is None else group.unsqueeze(-1)]
        level = dynamics.weight @ spread @ dynamics.weight.mT
        paths = states.new_zeros(0, *states.shape)
        if count:
            paths = sample_states(dynamics, x.double(), lengths, count, smoothed.filtered)[:, rows, place]
        mean, samples = (dynamics.loc + path @ dynamics.weight.mT for path in (states, paths))
        samples = samples + torch.randn_like(samples) * dynamics.noise.sqrt()
        k = self.num_shown
        shown = states[..., :k], spread[..., :k, :k]
        return StepLaw(*shown, mean, level, level + dynamics.noise.diag(), samples, paths[..., :k])

    def num_observed(self, value: Tensor) -> Tensor:
        """Of how many steps of each sequence something is known, shape batch."""
        known = ~value.isnan().all(-1)
        if self.lengths is not None:
            known = known & (torch.arange(value.shape[-2], device=value.device) < self.lengths.unsqueeze(-1))
        return known.sum(-1)

    def statistics(self, value: Tensor, weights: Tensor | None = None) -> DynamicsStatistics:
        """Expected sufficient statistics given whole sequences, in double precision: what an M-step needs.

        Args:
            value: Sequences, batch + (T, d).
            weights: How often each counts, the batch's shape; once by default.
        """
        _, x, _ = self._flat(value)
        given = None if weights is None else weights.reshape(-1)
        return dynamics_statistics(self.dynamics, x.double(), self.smooth(value), given)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw sequences of `num_steps` steps; padding holds draws too."""
        if self.num_steps is None:
            raise ValueError(
                "LinearGaussianChain.sample: expected num_steps, the number of steps to draw. "
                "Pass LinearGaussianChain(..., num_steps=)."
            )
        shape = torch.Size((*sample_shape, *self.batch_shape))
        _, values = sample_dynamics(self.dynamics, self.num_steps, shape.numel())
        return values.reshape(*shape, *values.shape[1:]).to(self.weight.dtype)

    def _flat(self, value: Tensor) -> tuple[torch.Size, Tensor, Tensor | None]:
        """The batch, sequences with the batch in one axis, and their lengths."""
        d = len(self.weight)
        if value.dim() < 2 or value.shape[-1] != d or value.shape[-2] == 0:
            raise ValueError(
                f"LinearGaussianChain: expected values of shape (..., T, {d}); got {tuple(value.shape)}. "
                "Give at least one step, and one column for each row of weight."
            )
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-2])
        if value.dim() != 3 or batch != value.shape[:1]:
            value = value.expand(*batch, *value.shape[-2:]).reshape(-1, *value.shape[-2:])
        return batch, value, None if self.lengths is None else self.lengths.expand(batch).reshape(-1)

    def _filtered(self, x: Tensor, lengths: Tensor | None) -> Filtered:
        """The filter's results, those of the last call again if they are asked for without gradients."""
        last = self._last
        if last is not None and last[0] is x and last[1] == x._version and not torch.is_grad_enabled():
            return last[2]
        dynamics, patterns = self.dynamics, sequence_patterns(x, lengths)
        found = filter_means(dynamics, x.double(), patterns, gains_of(dynamics, patterns))
        if not found.log_likelihood.requires_grad and not x.is_inference():
            self._last = (x, x._version, found)
        return found

    def _loc(self, value: Tensor) -> Tensor:
        """Means of the states, batch + (T, k), in double precision."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-2])
        return self.smooth(value).loc.transpose(0, 1).reshape(*batch, value.shape[-2], -1)

    def _inside(self, states: Tensor, value: Tensor) -> Tensor:
        """States with zeros in padding."""
        if self.lengths is None:
            return states
        inside = torch.arange(value.shape[-2], device=value.device) < self.lengths.unsqueeze(-1)
        return torch.where(inside.unsqueeze(-1), states, 0.0)
