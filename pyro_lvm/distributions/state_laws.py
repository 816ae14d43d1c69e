"""Categorical laws of hidden states, and their exact logarithms."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["StateLaw", "built_from", "exact_log_probs", "restrict"]


class StateLaw(NamedTuple):
    """One of the categorical laws that a chain's tables are made of.

    Attributes:
        fn: Batch + (steps, if `timed`) + given states.
        given: Number of axes of the batch, its last, that are given states: 1 for transitions.
        timed: Whether the batch has an axis of steps (of size 1 if all are alike) before those.
        of_states: Whether its own values are states too.
    """

    fn: dist.Categorical
    given: int = 0
    timed: bool = False
    of_states: bool = True


def built_from(law: Any) -> str:
    """Which argument a categorical law was built from; asking for the other one would round."""
    return "logits" if law._param is vars(law).get("logits") else "probs"


def exact_log_probs(law: Any) -> Tensor:
    """Normalised log-probabilities of a categorical law, -inf where a probability is exactly zero."""
    if built_from(law) == "logits":
        return law.logits
    possible = law.probs > 0
    return torch.where(possible, torch.where(possible, law.probs, 1.0).log(), -torch.inf)


def restrict(density: Tensor, known_states: Tensor | None) -> Tensor:
    """Log-densities of steps by state, batch + (T, K), -inf for states that contradict known ones (-1: unknown)."""
    if known_states is None:
        return density
    states = known_states.unsqueeze(-1)
    other = (states >= 0) & (states != torch.arange(density.shape[-1], device=states.device))
    return torch.where(other, -torch.inf, density)
