"""Known values of latent sites among the data: labels for some rows, the model's own argument names for the rest.

`lvm.fit(model, {"x": x, "z": labels})` clamps site "z" to the labels of each batch's rows; a model knows nothing of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from itertools import chain, product
from typing import Any

import torch
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions.constraints import Constraint
from torch.utils.data import Dataset

from pyro_lvm.handlers.clamp import check_values, clamp
from pyro_lvm.handlers.hidden_states import states_of
from pyro_lvm.handlers.inform import inform
from pyro_lvm.handlers.rows import settled
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.parameters import Parameters
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.training.arguments import WEIGHTS
from pyro_lvm.training.data import Arguments, as_arguments, as_labels, from_dataset

__all__ = [
    "Labelled",
    "LabelledGuide",
    "as_labelled",
    "check_labels",
    "check_ranges",
    "labels_of",
    "name_states",
    "unclamp",
    "without_labels",
]


class Labelled:
    """A program that also takes values of its sites, by name; -1 in whole numbers and NaN in others mean unknown.

    Args:
        model: Any Pyro program.
        drawn: Sites whose values come from outside, as from a guide that has been told what is known of them.
    """

    def __init__(self, model: Callable, drawn: Collection[str] = ()) -> None:
        self.model = model
        self.drawn = frozenset(drawn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the sites that were given clamped."""
        labels, own = _apart(self.model, kwargs)
        labels = {name: value for name, value in labels.items() if name not in self.drawn}
        return (_Labels(self.model, labels) if labels else self.model)(*args, **own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("model", "drawn"):
            raise AttributeError(name)
        return getattr(self.model, name)


class LabelledGuide:
    """A guide that is run with the arguments of a labelled model, and draws the known values of its sites."""

    def __init__(self, guide: Callable, model: Callable) -> None:
        self.guide = guide
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide."""
        labels, own = _apart(self.model, kwargs)
        with _informed(labels):
            return self.guide(*args, **own)

    def settle(self, *args: Any, **kwargs: Any) -> LabelledGuide:
        """The guide after its search for the laws of these rows, if it is one that searches."""
        labels, own = _apart(self.model, kwargs)
        with _informed(labels):
            return LabelledGuide(settled(self.guide, args, own), self.model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("guide", "model"):
            raise AttributeError(name)
        return getattr(self.guide, name)


class _Labels(clamp):
    """Values that say themselves where they are known."""

    caller = "labels"

    def known(self, name: str, fn: Any) -> Tensor | None:
        """A site that can be enumerated stays so even if all is known: its states are few, the rows are many."""
        known = _entries(name, self.values[name], fn.event_dim)
        return known if fn.has_enumerate_support or not bool(known.all()) else None


class _Latent(clamp):
    """The same, but a site stays latent even if all is known."""

    caller = "labels"

    def known(self, name: str, fn: Any) -> Tensor | None:
        """Which entries are known."""
        return _entries(name, self.values[name], fn.event_dim)


class _Informed(inform):
    """The same for a guide, which need not draw all of the sites."""

    caller, known = "labels", _Latent.known

    def of_model(self, model: Callable) -> Callable:
        """The model with the same values."""
        return _Latent(model, self.values)

    def __enter__(self) -> Any:
        """Install the handler."""
        result = super().__enter__()
        self._met = set(self.values)
        return result


def _informed(labels: dict[str, Any]) -> AbstractContextManager[Any]:
    return _Informed(None, labels) if labels else nullcontext()


def _entries(name: str, given: Tensor, event_dim: int) -> Tensor:
    """Which of the values are known, in the shape of the site's plates."""
    if given.is_floating_point():
        entries = ~given.isnan()
    else:
        entries = given != -1 if given.dtype.is_signed else torch.ones_like(given, dtype=torch.bool)
    if not event_dim:
        return entries
    known, some = entries.flatten(-event_dim).all(-1), entries.flatten(-event_dim).any(-1)
    if bool((some != known).any()):
        raise PlainError(
            f"labels: expected each row's value of '{name}' to be known or unknown as a whole; got one in part. "
            "Replace it by NaN throughout."
        )
    return known


def _parameters(model: Callable) -> set[str] | None:
    """Names of a program's arguments; None if it takes any or cannot say."""
    program = poutine.unwrap(inspect.unwrap(model))  # copies of handlers are only known by what they wrap
    try:
        signature = inspect.signature(program.forward if isinstance(program, torch.nn.Module) else program)
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    return set(signature.parameters)


def labels_of(model: Callable, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not arguments of the model; weights of rows are never labels."""
    parameters = _parameters(model) if kwargs else None
    return {} if parameters is None else {n: v for n, v in kwargs.items() if n not in parameters and n != WEIGHTS}


def _apart(model: Callable, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The labels, and the model's own arguments."""
    labels = labels_of(model, kwargs)
    return labels, {name: value for name, value in kwargs.items() if name not in labels} if labels else kwargs


def without_labels(model: Callable, arguments: Arguments) -> Arguments:
    """The model's own arguments."""
    return replace(arguments, kwargs=_apart(model, arguments.kwargs)[1])


def as_labelled(data: Any, model: Callable, device: torch.device | None = None) -> Arguments:
    """What `as_arguments` does, for data that may hold labels: those may have unknown entries.

    Raises:
        ValueError: There are no data besides labels, or another number of labels than rows.
    """
    data = from_dataset(data, model) if isinstance(data, Dataset) else data
    named = data.kwargs if isinstance(data, Arguments) else data
    labels = labels_of(model, named) if isinstance(named, Mapping) else {}
    if isinstance(data, Arguments):
        own: Any = without_labels(model, data)
    else:
        own = {k: v for k, v in data.items() if k not in labels} if labels else data
    if not labels or not (own.values if isinstance(own, Arguments) else own):
        return as_arguments(data, model, device)
    arguments = as_arguments(own, model, device)
    known = {name: as_labels(value, name, arguments) for name, value in labels.items() if value is not None}
    return _join(arguments, known)


def _join(arguments: Arguments, labels: dict[str, Tensor]) -> Arguments:
    rows = arguments.num_rows
    for name, value in labels.items():
        if not value.dim() or len(value) != rows:
            raise ValueError(
                f"labels: expected one value of '{name}' for each of the {rows} rows; got shape {tuple(value.shape)}. "
                "Write -1 (in whole numbers) or NaN where it is unknown."
            )
        if bool(value.isinf().any()):
            where = tuple(value.isinf().nonzero()[0].tolist())
            raise ValueError(
                f"labels: expected values of '{name}' to be finite; got {value[where].item():g} at row {where[0]}. "
                "Write NaN where it is unknown."
            )
    moved = {name: value.to(arguments.main.device) for name, value in labels.items()}
    return replace(arguments, kwargs={**arguments.kwargs, **moved})


def unclamp(program: Any, arguments: Arguments, model: Callable | None = None) -> tuple[Any, Arguments]:
    """Turn `clamp(program, values, mask)` into the program, and the values into labels of the rows, where they are.

    The labels then follow their rows into batches, and the fit's program is free for other rows.

    Args:
        program: A model, or a guide, around which `clamp` or `inform` may stand.
        arguments: All rows.
        model: Whose sites they are, if not the program's.
    """
    handler = getattr(program, "clamp", None)
    if not isinstance(handler, clamp):
        return program, arguments
    inner: Callable = program.model
    values, rows = handler.values, arguments.num_rows
    if _parameters(model or inner) is None or any(not v.dim() or len(v) != rows for v in values.values()):
        return program, arguments
    labels = {}
    for name, value in values.items():
        value = value.long() if value.dtype == torch.bool else value
        known = handler.masks.get(name, torch.ones((), dtype=torch.bool)).to(value.device)
        known = known.reshape(known.shape + (1,) * (value.dim() - known.dim() if known.dim() else 0))
        labels[name] = torch.where(known, value, torch.nan if value.is_floating_point() else -1)
    return inner, _join(arguments, labels)


def check_labels(model: Callable, arguments: Arguments, *, fresh: bool = True) -> dict[str, Any]:
    """Check labels; return the laws of those sites whose support is one for all rows, as `check_ranges` takes them.

    Raises:
        ValueError: An entry is neither an argument of the model nor a latent site, or a value is not in its support.
    """
    labels = labels_of(model, arguments.kwargs)
    sites = _latent_sites(model, without_labels(model, arguments), fresh) if labels else {}
    stray = sorted(labels.keys() - sites.keys())
    if stray:
        takes = ", ".join(sorted(_parameters(model) or ()))
        raise ValueError(
            f"data: expected entries for the model's arguments ({takes}) or its latent sites "
            f"({', '.join(sorted(sites))}); got '{stray[0]}'. Rename it, or leave it out."
        )
    if labels:
        structure(Labelled(model), arguments.args, arguments.kwargs, fresh=fresh)  # clamping them checks their shapes
    laws: dict[str, Any] = dict.fromkeys(labels)  # None for hidden states, which are checked whenever they are clamped
    for name, label in labels.items():
        if states_of(sites[name]) != name:
            laws[name] = {"name": name, "fn": sites[name]["fn"], "form": label.shape[1:]}
    check_ranges(laws, labels)
    return {name: law for name, law in laws.items() if law is None or _is_constant(law["fn"].support)}


def check_ranges(laws: dict[str, Any], labels: dict[str, Tensor]) -> bool:
    """Whether the laws are all that the labels need; raise a ValueError for a known value outside of its support."""
    for name, law in laws.items():
        label = labels.get(name)
        if law is not None and label is not None and label.shape[1:] == law["form"]:
            with suppress(RuntimeError):  # the support is another one for every row
                check_values("labels", law, label, _entries(name, label, law["fn"].event_dim))
    return all(n in laws and (laws[n] is None or v.shape[1:] == laws[n]["form"]) for n, v in labels.items())


def _is_constant(support: Any) -> bool:
    """Whether numbers alone make up a support, no tensors, which may be rows' own or learned."""
    parts = vars(support).values()
    return all(_is_constant(p) if isinstance(p, Constraint) else isinstance(p, (int, float)) for p in parts)


def _latent_sites(model: Callable, arguments: Arguments, fresh: bool) -> dict[str, Any]:
    trace = structure(model, arguments.args, arguments.kwargs, fresh=fresh)
    hidden = {name: site for site in trace.nodes.values() if (name := states_of(site)) is not None}
    return {name: trace.nodes[name] for name in trace.stochastic_nodes} | hidden


def name_states(model: Any, arguments: Arguments) -> None:
    """Let the states of an initialised model mean what the labels say.

    An unsupervised start numbers its states as it likes. The numbering that agrees best with the labels is found, and
    the model's parameters, or its `initial_values` where they have priors, are reordered along the axis that its
    `dims` give the states: whichever does to the posterior what it should. A model that does not tell is left as it is.
    """
    labels = labels_of(model, arguments.kwargs)
    own = without_labels(model, arguments)
    for name, label in labels.items():
        try:
            before = _posterior(model, own, name)
        except ValueError:  # a latent site that cannot be enumerated
            continue
        order = _best_order(before, label)
        if bool((order == torch.arange(len(order), device=order.device)).all()):
            continue
        for axis, aligned in product(dict.fromkeys(chain(*getattr(model, "dims", {}).values())), (0, -1)):
            _reorder(model, own, axis, aligned, order)
            if torch.allclose(_posterior(model, own, name), before[..., order], atol=1e-4):
                break
            _reorder(model, own, axis, aligned, order.argsort())


def _posterior(model: Any, arguments: Arguments, site: str) -> Tensor:
    start = poutine.condition(model, model.initial_values)
    return EM(start).posterior(*arguments.args, **arguments.kwargs)[site]


def _reorder(model: Any, arguments: Arguments, axis: str, aligned: int, order: Tensor) -> None:
    """Reorder all entries along an axis, and along its twin in square matrices ("dimension_2", "next_state").

    An array of fewer axes than declared is taken to have the first of them (`aligned` 0) or the last (-1).
    """

    def reordered(name: str, value: Tensor) -> Tensor:
        declared = model.dims.get(name, [])
        names = declared[: value.dim()] if aligned == 0 else declared[len(declared) - value.dim() :]
        for i, other in enumerate(names):
            if other.removesuffix("_2").removeprefix("next_") == axis and value.shape[i] == len(order):
                value = value.index_select(i, order.to(value.device))
        return value

    model.initial_values = {name: reordered(name, value) for name, value in model.initial_values.items()}
    with Parameters() as parameters:
        structure(model, arguments.args, arguments.kwargs, fresh=False)
    for name, parameter in parameters.found.items():
        parameter.write(reordered(name, parameter.value.detach()))


def _best_order(posterior: Tensor, label: Tensor) -> Tensor:
    """Which state each label most likely means: the assignment with the largest posterior of the known labels."""
    count = posterior.shape[-1]
    known = (label >= 0) & (label < count)  # NaN is neither; a label out of range is refused when it is clamped
    table = torch.zeros(count, count, dtype=torch.float64)
    table.index_add_(0, label[known].long().cpu(), posterior[known].double().cpu())
    return torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1]).to(posterior.device)
