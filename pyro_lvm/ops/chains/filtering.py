"""What is known of the state while the data come in: filtering, prediction, fixed-lag smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lvm.ops.chains.inputs import Chains, prepare
from pyro_lvm.ops.chains.posterior import filtered, lagged

__all__ = ["Filtered", "filter", "fixed_lag", "predict"]


@dataclass(frozen=True)
class Filtered:
    """What is known at each step.

    Attributes:
        probabilities: p(state at t | x up to t), shape (*batch, T, K); zero in the padding.
        increments: Log p(x_t | x before t), shape (*batch, T), nats; zero in the padding. They add up to the
            log-likelihood.
    """

    probabilities: Float[Tensor, "*batch T K"]
    increments: Float[Tensor, "*batch T"]


def filter(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    algorithm: str = "auto",
) -> Filtered:
    """The posterior of each state given x up to its step. Arguments and errors are those of `smooth`.

    Returns:
        Everything without gradients. Where x up to a step is impossible, its probabilities are zero and its increment
        is -inf.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> filter(initial, transition, emission).probabilities[0]
        tensor([0.8824, 0.1176])
    """
    chains = prepare("filter", initial, transition, emission, lengths, algorithm).detach()
    probabilities, increments = filtered(chains, algorithm)
    return Filtered(
        probabilities=_emptied(probabilities.to(emission.dtype), chains).reshape(emission.shape),
        increments=_emptied(increments.unsqueeze(-1).to(emission.dtype), chains).reshape(emission.shape[:-1]),
    )


def predict(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    horizon: int = 1,
    future: Float[Tensor, "*#batch #horizon K K"] | None = None,
    algorithm: str = "auto",
) -> Float[Tensor, "*batch horizon K"]:
    """State probabilities in the steps after the last one observed. Arguments and errors are those of `smooth`.

    Args:
        initial: Log p(first state).
        transition: Log p(next state | previous state).
        emission: Log p(x_t | state).
        lengths: Steps of each chain, or None.
        horizon: How many steps ahead, at least 1.
        future: Log p(next state | previous state) of those steps; needed if the chains have a matrix for each step,
            and `transition` by default if they share one.
        algorithm: "sequential", "blocked", "scan" or "auto".

    Returns:
        p(state at T + h | x) at index h - 1; zero where the data are impossible.

    Raises:
        ValueError: As `smooth`; or the horizon is below 1, or `future` is missing or of another shape.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> predict(initial, transition, torch.zeros(1, 2), horizon=2)
        tensor([[0.5800, 0.4200],
                [0.5740, 0.4260]])
    """
    chains = prepare("predict", initial, transition, emission, lengths, algorithm).detach()
    if horizon < 1:
        raise ValueError(f"predict: expected a horizon of at least 1; got {horizon}.")
    if future is None:
        if not chains.homogeneous:
            raise ValueError(
                f"predict: expected future, the transitions of the {horizon} steps ahead, since these chains have a "
                "matrix for each step; got None. Pass log p(next | previous) of shape (*batch, horizon, K, K)."
            )
        ahead = chains.transition
    else:
        after = emission.new_zeros(*chains.batch, horizon + 1, chains.num_states)
        ahead = prepare("predict (future)", initial, future, after, None).transition.detach()
    probabilities, _ = filtered(chains, algorithm)
    state = chains.at_last(probabilities).unsqueeze(-2)
    ahead = ahead.to(state.dtype).exp().expand(-1, horizon, -1, -1)
    states = []
    for step in range(horizon):
        state = state @ ahead[:, step]
        states.append(state)
    return torch.cat(states, 1).to(emission.dtype).reshape(*chains.batch, horizon, chains.num_states)


def fixed_lag(
    initial: Float[Tensor, "*#batch K"],
    transition: Float[Tensor, "*#batch #steps K K"],
    emission: Float[Tensor, "*batch T K"],
    lengths: Int[Tensor, "*batch"] | None = None,
    *,
    lag: int,
    algorithm: str = "auto",
) -> Float[Tensor, "*batch T K"]:
    """The posterior of each state given x up to `lag` steps later. Arguments and errors are those of `smooth`.

    Args:
        initial: Log p(first state).
        transition: Log p(next state | previous state).
        emission: Log p(x_t | state).
        lengths: Steps of each chain, or None.
        lag: Steps to look ahead, at least 0 (filtering); T - 1 or more is smoothing. Time grows with it.
        algorithm: "sequential", "blocked", "scan" or "auto".

    Returns:
        p(state at t | x up to t + lag); zero in the padding and where the data are impossible.

    Raises:
        ValueError: As `smooth`; or the lag is negative.

    Example:
        >>> import torch
        >>> initial = torch.tensor([0.6, 0.4]).log()
        >>> transition = torch.tensor([[[0.7, 0.3], [0.4, 0.6]]]).log()
        >>> emission = torch.tensor([[0.5, 0.1], [0.4, 0.3], [0.1, 0.6]]).log()
        >>> fixed_lag(initial, transition, emission, lag=1)[1]
        tensor([0.6229, 0.3771])
    """
    chains = prepare("fixed_lag", initial, transition, emission, lengths, algorithm).detach()
    if lag < 0:
        raise ValueError(f"fixed_lag: expected a lag of at least 0; got {lag}.")
    result = lagged(chains, min(lag, chains.num_steps - 1), algorithm)
    return _emptied(result.to(emission.dtype), chains).reshape(emission.shape)


def _emptied(values: Tensor, chains: Chains) -> Tensor:
    """Values of shape (N, T, m), zero in the padding."""
    return values if chains.valid is None else torch.where(chains.valid.unsqueeze(-1), values, 0.0)
