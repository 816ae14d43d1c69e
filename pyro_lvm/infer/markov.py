r"""Programs that write a hidden Markov chain step by step, recognised and sent to the chain kernel.

A program with sites :math:`z_0, x_0, z_1, x_1, \dots` under `pyro.markov`, all steps alike, is one `HMM` site. That is
established once: the arguments of all steps agree, and so do their derivatives with respect to all parameters. From
then on its first two steps say everything, and E-steps run the program only that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.distributions.hidden_markov import HMM, built_from
from pyro_lvm.handlers.open_mixtures import rebuilt
from pyro_lvm.infer.blocks import fixed_noise
from pyro_lvm.infer.chains import Chain, open_chain, open_chains
from pyro_lvm.infer.factors import Factor, same_scale, trace_factors
from pyro_lvm.ops.cells import compact

__all__ = ["Markov", "opened_factors"]

# Shorter chains are enumerated as fast.
FEW_STEPS = 8


@dataclass
class Markov:
    """A program that is a chain of equal steps, and the data that it was found on.

    Attributes:
        arguments: The program's arguments.
        states: Names of the state sites.
        observed: Names of the observed sites.
        others: Names of the sites before them.
        values: Observed values, plates + (T,) + event, NaN where masked.
        lengths: Number of steps, plates; None if all have T.
    """

    arguments: list[tuple[Any, Any, int]]
    states: list[str]
    observed: list[str]
    others: list[str]
    values: Tensor
    lengths: Tensor | None

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
        step = _Step(first, second, third)
        law = HMM(
            **{f"initial_{k}": v for k, v in step.initial().items()},
            **{f"transition_{k}": v for k, v in step.transition().items()},
            emission=step.emission(),
            lengths=self.lengths,
            num_steps=len(self.states),
            validate_args=False,
        )
        site = step.site(law, self.values)
        names = (self.states[0], self.states[1], self.observed[0])
        chain = open_chain(Factor(self.observed[0], site, differentiable), names)
        chain.states, chain.sites, chain.inner = f"{names[0]}, {names[1]}, ...", self.states, step.inner
        made.update({part.name: part for part in chain.factors})
        return made, chain


@dataclass
class _Step:
    """Two successive states and what is observed at the second."""

    before: dict
    state: dict
    seen: dict

    @property
    def inner(self) -> int:
        """Plates of the observed site that states do not stand in, to the right of theirs."""
        plates = [f.dim for f in self.state["cond_indep_stack"] if f.vectorized]
        own = [f.dim for f in self.seen["cond_indep_stack"] if f.vectorized and f.dim not in plates]
        return -min(own) if own else 0

    @property
    def depth(self) -> int:
        """Number of batch dimensions of the states' plates."""
        return max([-f.dim - self.inner for f in self.state["cond_indep_stack"] if f.vectorized], default=0)

    def initial(self) -> dict[str, Tensor]:
        """Argument of the first state's law, plates + (K,)."""
        kind = built_from(self.before["fn"])
        return {kind: self._outer(compact(vars(self.before["fn"])[kind], 1), 1)}

    def transition(self) -> dict[str, Tensor]:
        """Argument of the next state's law, plates + (1, K, K)."""
        kind = built_from(self.state["fn"])
        param = compact(vars(self.state["fn"])[kind], 1)
        k = param.shape[-1]
        param = _to_end(param, self.before["infer"]["_enumerate_dim"], 1)
        return {kind: self._outer(param.expand(*param.shape[:-2], k, k), 2).unsqueeze(-3)}

    def emission(self) -> Any:
        """Law of a step in every state, plates + (1, K) + inner plates."""
        return self._by_state(self.seen["fn"], 0)

    def _by_state(self, fn: Any, inside: int) -> Any:
        if isinstance(fn, torch.distributions.Independent):
            inner = fn.reinterpreted_batch_ndims
            base = self._by_state(fn.base_dist, inside + inner)
            return None if base is None else base.to_event(inner)
        dim = self.state["infer"]["_enumerate_dim"]
        plates = {f.dim: f.size for f in self.seen["cond_indep_stack"] if f.vectorized}
        sizes = [plates.get(d, 1) for d in range(-self.inner, 0)]

        def moved(tensor: Tensor, event_dim: int) -> Tensor:
            event = inside + event_dim
            tensor = compact(tensor, event)
            short = self.inner + event - tensor.dim()
            tensor = tensor.reshape((1,) * max(0, short) + tuple(tensor.shape))
            tensor = _to_end(tensor, dim, event, self.inner)
            tensor = self._outer(tensor, 1 + self.inner + event, held=0).unsqueeze(-2 - self.inner - event)
            return tensor.expand(
                *tensor.shape[: tensor.dim() - self.inner - event], *sizes, *tensor.shape[tensor.dim() - event :]
            )

        made = rebuilt(fn, moved)
        return made if made is None or inside else made.to_event(self.inner)

    def _outer(self, tensor: Tensor, inside: int, held: int | None = None) -> Tensor:
        """Drop the batch dimensions of inner plates, and those on the left that have size one."""
        skipped = self.inner if held is None else held
        batch = tensor.shape[: tensor.dim() - inside]
        kept = batch[: len(batch) - skipped] if skipped else batch
        if any(size > 1 for size in (*batch[len(kept) :], *kept[: max(0, len(kept) - self.depth)])):
            raise _Unlike
        kept = kept[max(0, len(kept) - self.depth) :]
        return tensor.reshape((*kept, *tensor.shape[tensor.dim() - inside :]))

    def plates(self, tensor: Tensor) -> Tensor:
        """A mask or scale in the layout of the states' plates."""
        return self._outer(tensor, 0)

    def value(self) -> Tensor:
        """What is observed, plates + inner plates + event."""
        sizes = {f.dim: f.size for f in self.seen["cond_indep_stack"] if f.vectorized}
        batch = [sizes.get(dim, 1) for dim in range(-self.depth - self.inner, 0)]
        value, event = self.seen["value"], self.seen["fn"].event_shape
        value = value.reshape(value.shape[max(0, value.dim() - len(batch) - len(event)) :])
        return value.expand(torch.Size((*batch, *event)))

    def site(self, law: HMM, value: Tensor) -> dict:
        """The whole chain as one observed site."""
        scale = self.state["scale"]
        frames = [f._replace(dim=f.dim + self.inner) for f in self.state["cond_indep_stack"] if f.vectorized]
        return {
            **self.seen,
            "fn": law,
            "value": value,
            "mask": None,
            "scale": self.plates(scale) if isinstance(scale, Tensor) and scale.dim() else scale,
            "cond_indep_stack": tuple(frames),
        }


class _Unlike(Exception):  # noqa: N818 - no error: the program is not of this kind
    pass


def _to_end(tensor: Tensor, dim: int, inside: int, skip: int = 0) -> Tensor:
    """Move the enumerated batch dimension `dim` to the right end of the batch but for `skip` dimensions."""
    batch = tensor.dim() - inside
    if batch < -dim:
        tensor = tensor.reshape((1,) * (-dim - batch) + tuple(tensor.shape))
        batch = -dim
    return tensor.movedim(batch + dim, batch - 1 - skip)


def opened_factors(
    program: Callable,
    nesting: int,
    args: tuple,
    kwargs: dict[str, Any],
    known: Markov | None,
    *,
    differentiable: bool = False,
) -> tuple[poutine.Trace | None, dict[str, Factor], list[Chain], Markov | None]:
    """A program's factors, hidden Markov chains taken apart; run inside `Parameters`, with gradients.

    Args:
        program: Any Pyro program whose latent sites are enumerable.
        nesting: Batch dimensions that plates use.
        args: The program's arguments.
        kwargs: Its keyword arguments.
        known: What was recognised before.
        differentiable: Whether log-densities are.

    Returns:
        The trace unless it was not needed in full; factors; chains; and what was recognised.
    """
    if known is None or not known.fits(args, kwargs):
        trace, factors = trace_factors(program, nesting, args, kwargs, differentiable=differentiable)
        factors, chains = open_chains(factors)
        known = None if chains else _recognise(factors, args, kwargs)
        if known is None:
            return trace, factors, chains, None
    factors, chain = known.factors(program, nesting, args, kwargs, differentiable=differentiable)
    return None, factors, [chain], known


def _recognise(factors: dict[str, Factor], args: tuple, kwargs: dict[str, Any]) -> Markov | None:
    """Whether factors, traced with gradients, are a chain of equal steps; None if not."""
    states = [factor for factor in factors.values() if factor.enumerated]
    if len(states) < FEW_STEPS:
        return None
    names = list(factors)
    start = names.index(states[0].name)
    tail = list(factors.values())[start:]
    seen = [factor for factor in tail if not factor.enumerated]
    if [factor.enumerated for factor in tail] != [True, False] * len(states) or len(seen) != len(states):
        return None
    pairs = zip([states[0], *states[:-1]], states, seen, strict=True)
    steps = [_Step(before.site, state.site, x.site) for before, state, x in pairs]
    try:
        _check_sites(steps)
        _check_alike(steps)
        values, lengths = _collect(steps)
    except _Unlike:
        return None
    return Markov(
        _arguments(args, kwargs), [f.name for f in states], [f.name for f in seen], names[:start], values, lengths
    )


def _check_sites(steps: list[_Step]) -> None:
    first = steps[0]
    for i, step in enumerate(steps):
        fn, seen = step.state["fn"], step.seen
        plain = isinstance(fn, torch.distributions.Categorical)
        if (
            not plain
            or seen["args"]
            or seen["kwargs"]
            or not seen["is_observed"]
            or type(seen["fn"]).__name__ == "Unit"
        ):
            raise _Unlike
        if not (
            same_scale(step.state["scale"], first.state["scale"]) and same_scale(seen["scale"], first.state["scale"])
        ):
            raise _Unlike
        if any(site["infer"].get("m_step") for site in (step.state, seen)) or step.value().shape != first.value().shape:
            raise _Unlike
        allowed = {step.state["infer"]["_enumerate_dim"]}
        if not _wide(seen) - _plates(seen) <= allowed:
            raise _Unlike
        before = {step.before["infer"]["_enumerate_dim"]} if i else set()
        own = {d - len(fn.batch_shape) for d, size in enumerate(fn.batch_shape) if size > 1}
        if not own - _plates(step.state) <= before:
            raise _Unlike
        if _plates(step.state) - _plates(seen) or any(d >= -step.inner for d in _plates(step.state)):
            raise _Unlike


def _plates(site: dict) -> set[int]:
    return {f.dim for f in site["cond_indep_stack"] if f.vectorized}


def _wide(site: dict) -> set[int]:
    shape = site["fn"].batch_shape
    return {d - len(shape) for d, size in enumerate(shape) if size > 1}


def _check_alike(steps: list[_Step]) -> None:
    """Arguments of all steps, and their derivatives with respect to all that they come from, must be the same."""
    reference = [_tensors(steps[1].state["fn"]), _tensors(steps[1].emission())]
    leaves = _leaves([tensor for tensors in reference for tensor in tensors])
    moves, emission = _probe(steps[1].transition().values(), leaves), _probe(reference[1], leaves)
    kinds = _kinds(steps[1].seen["fn"])
    for i, step in enumerate(steps):
        if _kinds(step.seen["fn"]) != kinds or not _alike(_probe(_tensors(step.emission()), leaves), emission):
            raise _Unlike
        if i and not _alike(_probe(step.transition().values(), leaves), moves):
            raise _Unlike


def _kinds(fn: Any) -> list[type]:
    """The types of a distribution and all that it wraps."""
    return [type(fn), *(_kinds(fn.base_dist) if hasattr(fn, "base_dist") else [])]


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    """The leaves of the graph that tensors come from."""
    found: dict[int, Tensor] = {}
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    found.update({id(t): t for t in tensors if t.requires_grad and t.grad_fn is None})
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        pending.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(found.values())


def _probe(tensors: Iterable[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Tensors, and the derivatives of a fixed combination of them."""
    found = [tensor.detach() for tensor in tensors]
    terms = [(tensor * fixed_noise(tensor)).sum() for tensor in tensors if tensor.requires_grad]
    if not terms:
        return found
    slopes = torch.autograd.grad(torch.stack(terms).sum(), leaves, retain_graph=True, allow_unused=True)
    return [*found, *(torch.zeros(()) if slope is None else slope for slope in slopes)]


def _alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def _tensors(fn: Any) -> list[Tensor]:
    """Arguments of a distribution, through what wraps it."""
    if fn is None:
        raise _Unlike
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    names = [name for name in fn.arg_constraints if name in vars(fn)]
    return [compact(vars(fn)[name]) for name in names if isinstance(vars(fn)[name], Tensor)]


def _collect(steps: list[_Step]) -> tuple[Tensor, Tensor | None]:
    """Observed values of all steps, NaN where masked, and the sequences' lengths."""
    first = steps[0]
    axis = first.depth
    values = torch.stack([step.value() for step in steps], axis)
    batch, total = values.shape[:axis], len(steps)
    inside = torch.stack([_mask(step, step.state, batch) for step in steps], -1)
    there = torch.stack([_mask(step, step.seen, batch) for step in steps], -1)
    lengths = inside.sum(-1)
    if not bool((inside == (torch.arange(total, device=inside.device) < lengths.unsqueeze(-1))).all()):
        raise _Unlike  # a state that is skipped
    if bool((there & ~inside).any()) or bool((lengths == 0).any()):
        raise _Unlike
    if not bool(there.all()):
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        values = torch.where(there.reshape(*there.shape, *([1] * (values.dim() - there.dim()))), values, torch.nan)
    return values, None if bool((lengths == total).all()) else lengths


def _mask(step: _Step, site: dict, batch: torch.Size) -> Tensor:
    mask = site["mask"]
    if mask is None:
        return torch.ones(batch, dtype=torch.bool)
    mask = torch.as_tensor(mask)
    return step.plates(mask).expand(batch) if mask.dim() else mask.expand(batch)


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
