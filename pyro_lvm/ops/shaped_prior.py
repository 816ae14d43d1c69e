"""Priors in the shape of the parameter that they are of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.distributions import constraints

from pyro_lvm.ops.plain_error import PlainError

__all__ = ["shaped_prior"]


def shaped_prior(owner: str, name: str, prior: Any, shape: tuple[int, ...], constraint: Any = constraints.real) -> Any:
    """A prior of all entries of a parameter together, from one of those or of each entry or part.

    Args:
        owner: Whose parameter it is, for errors.
        name: What it is called.
        prior: A distribution: of the whole parameter; of a part along its last axes, as one row of probabilities or one
            entry, which then is that of every part; or a batch of those. Or a function of the model that returns one.
        shape: Of the parameter.
        constraint: Where the parameter lies.

    Raises:
        ValueError: It is of another shape, or over all real numbers where the parameter is not. That of a function is
            told when it is called.
    """
    if not hasattr(prior, "sample"):
        return _Checked(owner, name, prior, shape, constraint)
    if _is_real(prior.support) and not _is_real(constraint):
        raise PlainError(
            f"{owner}: expected a prior of '{name}' on its support, {constraint}; got {type(prior).__name__}, which is "
            "over all real numbers. Take one that is not, as dist.LogNormal or dist.Gamma of what is positive."
        )
    event, given = tuple(prior.event_shape), tuple(prior.batch_shape)
    batch = shape[: max(0, len(shape) - len(event))]
    if (*batch, *event) != shape or given not in ((), batch):
        got = f"event shape {event}" + (f" and batch shape {given}" if given else "")
        hint = (
            f"dist.Normal(0.0, 1.0).expand({list(shape)}).to_event({len(shape)})" if shape else "dist.Normal(0.0, 1.0)"
        )
        raise PlainError(
            f"{owner}: expected a prior of '{name}' of event shape {shape}; got {type(prior).__name__} of {got}. "
            f"Give it that shape, as {hint} has it."
        )
    return prior.expand(batch).to_event(len(batch)) if batch else prior


class _Checked:
    """A function of a model that returns a prior of the right shape, or says what is wrong with it."""

    def __init__(
        self, owner: str, name: str, prior: Callable[[Any], Any], shape: tuple[int, ...], constraint: Any
    ) -> None:
        self.owner, self.name, self.prior, self.shape, self.constraint = owner, name, prior, shape, constraint

    def __call__(self, model: Any) -> Any:
        return shaped_prior(self.owner, self.name, self.prior(model), self.shape, self.constraint)


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
