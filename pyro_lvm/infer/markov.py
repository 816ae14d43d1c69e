r"""Programs that write a hidden Markov chain step by step, recognised and sent to the chain kernel.

A program with sites :math:`z_0, x_0, z_1, x_1, \dots` under `pyro.markov`, all steps alike, is one `HMM` site. That is
established once: the arguments of all steps agree, and so do their derivatives with respect to all parameters. From
then on its first two steps say everything, and E-steps run the program only that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.handlers.counted import same_scale
from pyro_lvm.infer.alike import alike, kinds, leaves_of, probe, tensors_of
from pyro_lvm.infer.chain_sites import open_chain, open_chains
from pyro_lvm.infer.chain_step import Step, Unlike, plates_of, wide_dims
from pyro_lvm.infer.chains import Chain
from pyro_lvm.infer.factors import Factor, trace_factors

__all__ = ["Markov", "opened_factors"]

# Shorter chains are enumerated as fast.
FEW_STEPS = 8
# Uses after which the whole program is looked at again, and the factor by which they grow: parameters move.
FIRST_CHECK, GROWTH = 2, 4


@dataclass
class Markov:
    """A program that is a chain of equal steps, and the data that it was found on.

    Attributes:
        arguments: The program's arguments.
        states: Names of the state sites.
        observed: Names of the observed sites.
        others: Names of the sites before them.
        views: Observed values by step: views of tensors among the arguments, read anew every time.
        there: Which of them are not masked, plates + (T,); None if all.
        lengths: Number of steps, plates; None if all have T.
        uses: E-steps so far.
    """

    arguments: list[tuple[Any, Any, int]]
    states: list[str]
    observed: list[str]
    others: list[str]
    views: list[Tensor]
    there: Tensor | None
    lengths: Tensor | None
    uses: int = 0

    def due(self) -> bool:
        """Whether it is time to look at the whole program again; counts the use."""
        self.uses += 1
        check = FIRST_CHECK
        while check < self.uses:
            check *= GROWTH
        return check == self.uses

    def values(self, axis: int) -> Tensor:
        """What is observed, plates + (T,) + event, NaN where masked."""
        values = torch.stack(self.views, axis)
        if self.there is None:
            return values
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        return torch.where(self.there.reshape(*self.there.shape, *([1] * (values.dim() - axis - 1))), values, torch.nan)

    def fits(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether these are the arguments that the program was recognised on, unchanged."""
        found = _arguments(args, kwargs)
        return len(found) == len(self.arguments) and all(
            a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(found, self.arguments, strict=True)
        )

    def factors(
        self, program: Callable, nesting: int, args: tuple, kwargs: dict[str, Any], *, differentiable: bool = False
    ) -> tuple[dict[str, Factor], Chain]:
        """The program's factors from its first two steps, states summed out by the chain kernel."""
        trace = _first_steps(program, nesting, args, kwargs, self.states[2])
        made = {name: Factor(name, trace.nodes[name], differentiable) for name in self.others}
        first, second, third = (trace.nodes[name] for name in (*self.states[:2], self.observed[1]))
        step = Step(first, second, third)
        law = HMM(
            **{f"initial_{k}": v for k, v in step.initial().items()},
            **{f"transition_{k}": v for k, v in step.transition().items()},
            emission=step.emission(),
            lengths=self.lengths,
            num_steps=len(self.states),
            validate_args=False,
        )
        site = step.site(law, self.values(step.depth))
        names = {"initial": self.states[0], "transition": self.states[1], "emission": self.observed[0]}
        chain = open_chain(Factor(self.observed[0], site, differentiable), names)
        chain.states, chain.sites = f"{self.states[0]}, {self.states[1]}, ...", self.states
        chain.inner = step.inner
        made.update({part.name: part for part in chain.factors})
        return made, chain


def opened_factors(
    program: Callable,
    nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    known: Markov | bool | None,
    *,
    differentiable: bool = False,
) -> tuple[poutine.Trace | None, dict[str, Factor], list[Chain], Markov | bool | None]:
    """A program's factors, hidden Markov chains taken apart; run inside `Parameters`, with gradients.

    Args:
        program: Any Pyro program whose latent sites are enumerable.
        nesting: Batch dimensions that plates use.
        args: The program's arguments.
        kwargs: Its keyword arguments.
        known: What was recognised before, False if it was nothing.
        differentiable: Whether log-densities are.

    Returns:
        The trace unless it was not needed in full; factors; chains; and what was recognised.
    """
    current = known if isinstance(known, Markov) and known.fits(args, kwargs) else None
    if current is None or (not differentiable and current.due()):
        trace, factors = trace_factors(program, nesting, args, kwargs, differentiable=differentiable)
        whole, chains = open_chains(factors)
        found = None if chains or known is False or differentiable else _recognise(factors, args, kwargs)
        if not isinstance(found, Markov):
            return trace, whole, chains, found if known is None else False
        found.uses = known.uses if isinstance(known, Markov) else 0
        current = found
    factors, chain = current.factors(program, nesting, args, kwargs, differentiable=differentiable)
    return None, factors, [chain], current


def _recognise(factors: dict[str, Factor], args: tuple, kwargs: dict[str, Any]) -> Markov | bool | None:
    """What factors, traced with gradients, are as a chain of equal steps; False if none, None if they are few."""
    states = [factor for factor in factors.values() if factor.enumerated]
    if len(states) < FEW_STEPS:
        return None
    names = list(factors)
    start = names.index(states[0].name)
    tail = list(factors.values())[start:]
    seen = [factor for factor in tail if not factor.enumerated]
    if [factor.enumerated for factor in tail] != [True, False] * len(states) or len(seen) != len(states):
        return False
    pairs = zip([states[0], *states[:-1]], states, seen, strict=True)
    steps = [Step(before.site, state.site, x.site) for before, state, x in pairs]
    arguments = _arguments(args, kwargs)
    try:
        _check_sites(steps)
        _check_alike(steps)
        views = _views(steps, [value for _, value, _ in arguments if isinstance(value, Tensor)])
        there, lengths = _masks(steps)
    except (Unlike, RuntimeError, TypeError, ValueError, IndexError):  # a program of any shape may stand here
        return False
    return Markov(arguments, [f.name for f in states], [f.name for f in seen], names[:start], views, there, lengths)


def _check_sites(steps: list[Step]) -> None:
    """Every step must be a categorical state that follows the one before, and an observation that follows the state."""
    scale, shape = steps[0].state["scale"], steps[0].value().shape
    for i, step in enumerate(steps):
        state, seen, plates = step.state, step.seen, plates_of(step.state)
        before = {step.before["infer"]["_enumerate_dim"]} if i else set()
        fits = (
            isinstance(state["fn"], torch.distributions.Categorical)
            and not seen["args"]
            and not seen["kwargs"]
            and not any(site["infer"].get("m_step") for site in (state, seen))
            and all(same_scale(site["scale"], scale) for site in (state, seen))
            and wide_dims(state) - plates <= before
            and wide_dims(seen) - plates_of(seen) <= {state["infer"]["_enumerate_dim"]}
            and plates <= plates_of(seen)
            and all(dim < -step.inner for dim in plates)
            and step.value().shape == shape
            and step.emission() is not None
        )
        if not fits:
            raise Unlike


def _check_alike(steps: list[Step]) -> None:
    """Arguments of all steps, and their derivatives with respect to all that they come from, must be the same."""
    reference = [tensors_of(steps[1].state["fn"]), tensors_of(steps[1].emission())]
    leaves = leaves_of([tensor for tensors in reference for tensor in tensors])
    moves, emission = probe(steps[1].transition().values(), leaves), probe(reference[1], leaves)
    expected = kinds(steps[1].seen["fn"])
    for i, step in enumerate(steps):
        if kinds(step.seen["fn"]) != expected or not alike(probe(tensors_of(step.emission()), leaves), emission):
            raise Unlike
        if i and not alike(probe(step.transition().values(), leaves), moves):
            raise Unlike


def _views(steps: list[Step], arguments: list[Tensor]) -> list[Tensor]:
    """Observed values of all steps, if they are views of arguments: others would not follow the data."""
    storages = {argument.untyped_storage().data_ptr() for argument in arguments}
    views = [step.value() for step in steps]
    if any(view.untyped_storage().data_ptr() not in storages for view in views):
        raise Unlike
    return views


def _masks(steps: list[Step]) -> tuple[Tensor | None, Tensor | None]:
    """Which values are there, plates + (T,), and the sequences' lengths; None if all, or all alike."""
    batch, total = steps[0].value().shape[: steps[0].depth], len(steps)
    inside = torch.stack([step.mask(step.state, batch) for step in steps], -1)
    there = torch.stack([step.mask(step.seen, batch) for step in steps], -1)
    lengths = inside.sum(-1)
    if not bool((inside == (torch.arange(total, device=inside.device) < lengths.unsqueeze(-1))).all()):
        raise Unlike  # a state that is skipped
    if bool((there & ~inside).any()) or bool((lengths == 0).any()):
        raise Unlike
    return None if bool(there.all()) else there, None if bool((lengths == total).all()) else lengths


def _arguments(args: tuple, kwargs: dict[str, Any]) -> list[tuple[Any, Any, int]]:
    named: Iterator[tuple[Any, Any]] = iter([*enumerate(args), *sorted(kwargs.items())])
    return [(name, value, value._version if isinstance(value, Tensor) else 0) for name, value in named]


class _Enough(Exception):  # noqa: N818 - no error: what follows repeats what was seen
    pass


class _Until(Messenger):
    """Stop the program where it reaches a site."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.name:
            raise _Enough


def _first_steps(program: Callable, nesting: int, args: tuple, kwargs: dict[str, Any], end: str) -> poutine.Trace:
    """An enumerated trace of a program up to a site."""
    enumerate_sites = _pyro.EnumMessenger(first_available_dim=-1 - nesting)
    with poutine.trace() as tracer:
        try:
            with enumerate_sites, _Until(end):
                config_enumerate(program)(*args, **kwargs)
        except _Enough:
            pass
    return tracer.trace
