"""Sites whose hidden states are summed out inside their distribution, and what those states are called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_lvm.distributions import HMM
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["clamped_states", "states_of"]


def states_of(site: Any) -> str | None:
    """The name of a hidden Markov site's states; None for any other site.

    Args:
        site: A message of Pyro's, or a node of a trace. `infer={"states": name}` names the states; else they are
            called after the site.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro_lvm.distributions import HMM
        >>> def model(x):
        ...     switch = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        ...     pyro.sample("x", HMM(switch[0], switch, dist.Normal(torch.tensor([0.0, 3.0]), 1.0)), obs=x)
        >>> states_of(poutine.trace(model).get_trace(torch.zeros(5)).nodes["x"])
        'x_states'
    """
    if site["type"] != "sample" or not isinstance(site["fn"], HMM):
        return None
    return site["infer"].get("states", f"{site['name']}_states")


def clamped_states(caller: str, site: Any, name: str, given: Tensor, known: Tensor | None) -> HMM:
    """A hidden Markov site's distribution, some of its states known.

    Args:
        caller: Who asks, for errors.
        site: The site's message.
        name: What its states are called.
        given: States, of the site's plates and then its steps; -1, or NaN among numbers that are not whole, where
            unknown.
        known: Which of them are known, of the plates, or of the plates and steps; None if all are that are given.

    Raises:
        ValueError: A shape is wrong, or a state is not one of those that there are.
    """
    fn, value = site["fn"], site["value"]
    if value is not None:
        given, known = given.to(value.device), None if known is None else known.to(value.device)
    steps = fn.num_steps if value is None else value.shape[-fn.event_dim]
    plates = [0] * max((-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized), default=0)
    for frame in site["cond_indep_stack"]:
        if frame.vectorized:
            plates[frame.dim] = frame.size
    if steps is None:
        steps = given.shape[-1] if given.dim() else 1
    shape = (*plates, steps)
    if not _fits(given, shape) or given.shape[-1] != steps:
        raise PlainError(
            f"{caller}: expected states '{name}' of shape {shape}, one a step; got {tuple(given.shape)}. Write -1 "
            "where a state is unknown, and in padding."
        )
    if known is None:
        known = torch.ones((), dtype=torch.bool, device=given.device)
    elif not _fits(known, shape) and _fits(known, plates):
        known = known.unsqueeze(-1)
    elif not _fits(known, shape):
        raise PlainError(
            f"{caller}: expected the mask of '{name}' of shape {shape} or {tuple(plates)}; got {tuple(known.shape)}. "
            "Give one True or False per step, or per sequence."
        )
    known = known & ~given.isnan() & (given != -1)
    wrong = known & ((given < 0) | (given >= fn.num_states) | (given != given.round()))
    if fn.lengths is not None:
        wrong = wrong & (torch.arange(steps, device=given.device) < fn.lengths.unsqueeze(-1))
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise PlainError(
            f"{caller}: expected known states of '{name}' to be whole numbers from 0 to {fn.num_states - 1}; got "
            f"{given.expand(wrong.shape)[place].item():g} at {place}. Correct it, or write -1 where it is unknown."
        )
    states = torch.where(known, given.nan_to_num(-1.0), -1).long()
    return fn.clamp(states)


def _fits(tensor: Tensor, shape: Any) -> bool:
    return tensor.dim() <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(tensor.shape), reversed(shape), strict=False)
    )
