"""Laws of rows that a user gives: a distribution whose arguments are learned, or a program that returns one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm.distributions.columns import FAMILIES, Arguments, Categorical
from pyro_lvm.distributions.rows import IndependentColumns, Kind, RowFamily
from pyro_lvm.handlers.open_mixtures import arguments_of, rebuilt

__all__ = ["GivenRows", "ProgrammedRows", "as_row_family"]


class _AnyRows(RowFamily):
    """What is common to laws that are not ours: they bring their start, and their columns may depend on each other."""

    takes_gaps = False
    caller: str
    num_states: int
    learned: Arguments

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """The law's own start."""
        return {name: start.to(x) for name, start in self.learned.items()}

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """The law's own start; there is no summary."""
        return dict(self.learned), {}

    def summary(self, x: Tensor, counts: Tensor, num_states: int) -> Arguments:
        """Nothing."""
        return {}

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """No default is known."""
        raise ValueError(
            f"{self.caller}: expected a prior for '{name}', since no default is known for an emission of your own. "
            f"Pass priors={{'{name}': ...}}, or a function with pyro.sample statements as emission."
        )

    def check_training(self, caller: str, x: Tensor) -> None:
        """Nothing is known of what such laws need."""


class GivenRows(_AnyRows):
    """A distribution with states along its last batch dimension; its arguments are where learning starts.

    Args:
        caller: Who asks, for errors.
        law: A distribution that can be made anew from its arguments; scalar events are rows of one column.
        num_states: K.

    Raises:
        ValueError: It cannot be made anew, or has another number of states.
    """

    def __init__(self, caller: str, law: Any, num_states: int) -> None:
        law = _as_rows(caller, law, num_states)
        self.data_dim = law.event_shape[-1]
        self.caller, self.num_states = caller, num_states
        self.inner = 0
        while isinstance(law, torch.distributions.Independent):
            self.inner += law.reinterpreted_batch_ndims
            law = law.base_dist
        self.made_of = law
        found = arguments_of(law)
        if found is None:
            raise ValueError(
                f"{caller}: expected an emission that can be made anew from its arguments; got {type(law).__name__}. "
                "Pass a function that returns it."
            )
        tensors, self.settings = found
        self.fixed = {name: value for name, value in tensors.items() if law.arg_constraints[name].is_discrete}
        self.learned = {name: value.detach().clone() for name, value in tensors.items() if name not in self.fixed}

    @property
    def parameters(self) -> dict[str, Kind]:
        """The arguments of the distribution that are no whole numbers."""
        return {
            name: Kind(self.made_of.arg_constraints[name], _axes(name, start, self.num_states))
            for name, start in self.learned.items()
        }

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        return type(self.made_of)(**parameters, **self.fixed, **self.settings).to_event(self.inner)

    def contains(self, x: Tensor) -> Tensor:
        """Which entries the support allows, where it is the same for all parameters."""
        support = self.made_of.support
        if support.event_dim or any(isinstance(bound, Tensor) for bound in vars(support).values()):
            return torch.isfinite(x)
        return torch.isfinite(x) & support.check(x)

    @property
    def support(self) -> str:  # type: ignore[override]  # depends on the distribution
        """In torch's words."""
        return f"values in the support of {type(self.made_of).__name__}"


class ProgrammedRows(_AnyRows):
    """A function without arguments that returns a distribution, and may have `pyro.param` and `pyro.sample` sites.

    Its `pyro.param` sites become parameters of the model, which learns them in a store of its own.

    Args:
        caller: Who asks, for errors.
        program: The function; it is run once.
        num_states: K.
    """

    def __init__(self, caller: str, program: Callable[[], Any], num_states: int) -> None:
        self.caller, self.program, self.num_states = caller, program, num_states
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            self.data_dim = _as_rows(caller, program(), num_states).event_shape[-1]
            store = pyro.get_param_store()
            limits = store.get_state()["constraints"]
            self.learned = {name: value.detach().clone() for name, value in store.items()}
        self.limits = {name: limits[name] for name in self.learned}

    @property
    def parameters(self) -> dict[str, Kind]:
        """The function's `pyro.param` sites."""
        return {
            name: Kind(self.limits[name], _axes(name, start, self.num_states)) for name, start in self.learned.items()
        }

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        with _Given(parameters):
            return _as_rows(self.caller, self.program(), self.num_states)


class _Given(Messenger):
    """Answer `pyro.param` statements with given values, unseen by any handler further out."""

    def __init__(self, values: Arguments) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"], msg["stop"] = self.values[msg["name"]], True, True


def _axes(name: str, start: Tensor, num_states: int) -> tuple[str, ...]:
    """Names of a parameter's axes; the first is taken for that of states if it is as long."""
    axes = [f"{name}_{i}" for i in range(start.dim())]
    return ("state", *axes[1:]) if start.dim() and start.shape[0] == num_states else tuple(axes)


def as_row_family(caller: str, emission: Any, num_states: int, data_dim: int | None = None) -> RowFamily:
    """What a user may give as an emission.

    Args:
        caller: Who asks, for errors.
        emission: A family or the name of one of columns, a distribution, or a function that returns one.
        num_states: K.
        data_dim: Number of columns, for families by name.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(emission, RowFamily):
        return emission
    if isinstance(emission, str) and emission in FAMILIES and emission != Categorical.name:
        return IndependentColumns(FAMILIES[emission](), data_dim)
    if isinstance(emission, torch.distributions.Distribution):
        return GivenRows(caller, emission, num_states)
    if callable(emission) and not isinstance(emission, type):
        return ProgrammedRows(caller, emission, num_states)
    raise ValueError(
        f"{caller}: expected emission to be a distribution with states along its last batch dimension, a function that "
        f"returns one, or one of {', '.join(name for name in FAMILIES if name != Categorical.name)}; got {emission!r}."
    )


def _as_rows(caller: str, law: Any, num_states: int) -> Any:
    """A distribution over rows of columns: scalar events become rows of one column."""
    if not law.batch_shape or law.batch_shape[-1] != num_states:
        raise ValueError(
            f"{caller}: expected an emission of batch shape ({num_states},), one law a state; got "
            f"{tuple(law.batch_shape)}. States stand along the last batch dimension."
        )
    if law.event_shape:
        return law
    wide = rebuilt(law, lambda tensor, event_dim: tensor.unsqueeze(-1 - event_dim))
    if wide is None:
        raise ValueError(
            f"{caller}: expected an emission over rows of columns; got {type(law).__name__} over single values. "
            "Give it batch shape (num_states, 1) and end it with .to_event(1)."
        )
    return wide.to_event(1)
