r"""Mixtures whose columns are independent given the component, of whatever kind each column is.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_{nj} \mid z_n = k &\sim F_j(\theta_{kj})
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import ColumnFamily
from pyro_lvm.models.mixture import Mixture, Priors
from pyro_lvm.ops.kmeans import kmeans
from pyro_lvm.ops.missing import fill

__all__ = ["FactorisedMixture", "Group"]


@dataclass(frozen=True)
class Group:
    """Columns of one family, observed at one site.

    Attributes:
        site: Name of the site.
        family: The law of each column.
        columns: Their places in the table.
        parameters: The model's parameter for every argument of the family.
        axes: Names of the parameters' axes after the component.
    """

    site: str
    family: ColumnFamily
    columns: tuple[int, ...]
    parameters: dict[str, str]
    axes: tuple[str, ...] = ("dimension",)


class FactorisedMixture(Mixture):
    """Base of the mixtures with independent columns: one site per group of columns of one family.

    A missing entry (NaN) is left out of its row's density, which marginalises it exactly.

    Attributes:
        groups: The columns by family; empty until the number of columns is known.
    """

    handles_missing: ClassVar[bool] = True

    def __init__(self, num_components: int, priors: bool | Priors | None = None) -> None:
        super().__init__(num_components, priors)
        self.groups: tuple[Group, ...] = ()

    @abstractmethod
    def _learn_columns(self, x: Tensor) -> None:
        """Learn from rows what the constructor left open."""

    @abstractmethod
    def _grouped(self) -> tuple[Group, ...]:
        """The groups that the constructor's arguments, now complete, ask for."""

    @property
    def _num_columns(self) -> int | None:
        return sum(len(group.columns) for group in self.groups) or None

    def _parameters_of_components(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for group in self.groups for name in group.parameters.values()}

    def _observe(self, parameters: dict[str, Tensor], z: Tensor, x: Tensor | None) -> Tensor:
        x = None if x is None else self._coded(x)
        values = []
        for group in self.groups:
            arguments = {argument: parameters[name][z] for argument, name in group.parameters.items()}
            law, value = group.family.distribution(None if x is None else self._select(x, group), arguments)
            values.append(pyro.sample(group.site, law, obs=value))
        if len(values) == 1:
            return values[0]
        places = torch.tensor([column for group in self.groups for column in group.columns])
        return torch.cat(values, -1)[..., places.argsort().to(z.device)]

    def _select(self, x: Tensor, group: Group) -> Tensor:
        return x if len(self.groups) == 1 else x[:, list(group.columns)]

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a matrix with the right columns, all known entries in their support."""
        super().check(x)
        x = self._coded(x)
        for group in self.groups:
            values = self._select(x, group)
            bad = ~(group.family.contains(values) | values.isnan())
            if bool(bad.any()):
                row, place = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"{self._name}: expected {group.family.support} in column {group.columns[place]}; "
                    f"got {values[row, place].item():g} in row {row}. {self._other_support(group)}"
                )

    def _other_support(self, group: Group) -> str:
        return "Recode that column, or use a model for such values."

    def check_training(self, x: Tensor) -> None:
        """Raise a ValueError for too few rows, wrong values, or a column from which nothing can be learned."""
        super().check_training(x)
        x = self._coded(x)
        known = ~x.isnan()
        empty = (~known.any(0)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"{self._name}: expected known entries in every column; column {empty[0]} has none. Drop it."
            )
        for group in self.groups:
            for column in () if group.family.bounded else group.columns:
                values = x[known[:, column], column]
                if bool((values == values[0]).all()):
                    raise ValueError(
                        f"{self._name}: expected {group.family.name} columns that vary; got constant column {column} "
                        f"(always {values[0].item():g}), whose likelihood is unbounded. Drop it."
                    )

    def _arrange(self, x: Tensor) -> None:
        self._learn_columns(self._coded(x))
        self.groups = self._grouped()

    def _start(self, x: Tensor, sample_weights: Tensor | None) -> None:
        x = self._coded(x)
        features = torch.cat([group.family.features(self._select(x, group)) for group in self.groups], -1)
        features, _ = fill(features, sample_weights)
        assignment = kmeans(features, self.num_components, sample_weights=sample_weights)
        members = torch.nn.functional.one_hot(assignment, self.num_components).to(x)
        self._declare(x, members if sample_weights is None else members * sample_weights.unsqueeze(-1))

    def _coded(self, x: Tensor) -> Tensor:
        """Rows with NaN where an entry is missing."""
        return x

    def _declare_unseen(self) -> None:
        """Create the parameters before any data are there, alike for all components."""
        self.groups = self._grouped()
        examples = {column: group.family.examples for group in self.groups for column in group.columns}
        x = torch.full((max(map(len, examples.values())), len(examples)), torch.nan)
        for column, values in examples.items():
            x[: len(values), column] = torch.tensor(values)
        self._declare(x, torch.full((len(x), self.num_components), 1 / self.num_components))

    def _declare(self, x: Tensor, members: Tensor) -> None:
        """Create weights and component parameters at the clusters' estimates."""
        total = members.sum(0)
        names = {name for group in self.groups for name in group.parameters.values()} | {"weights"}
        given = self.priors if isinstance(self.priors, dict) else {}
        if set(given) - names:
            unknown = ", ".join(sorted(set(given) - names))
            raise ValueError(f"{self._name}: expected priors for {', '.join(sorted(names))}; got {unknown}.")
        share = (total + 1) / (total.sum() + self.num_components)
        self.dims = {"weights": ["component"]}  # type: ignore[misc]  # depends on the columns
        default: dict[str, Any] = {"weights": type(self)._weights_prior}
        starts: dict[str, tuple[Tensor, constraints.Constraint]] = {"weights": (share, constraints.simplex)}
        for group in self.groups:
            values = self._select(x, group)
            start = group.family.start(values, members)
            overall = group.family.start(values, members.sum(1, keepdim=True))
            for argument, name in group.parameters.items():
                self.dims[name] = ["component", *group.axes]
                self.register_buffer(f"overall_{name}", overall[argument][0])
                default[name] = partial(_prior, group=group, argument=argument)
                starts[name] = (start[argument], group.family.arguments[argument])
        priors = {**(default if self.priors else {}), **given}
        for name, (value, constraint) in starts.items():
            self.declare(name, value, constraint, priors.get(name))


def _prior(model: FactorisedMixture, *, group: Group, argument: str) -> Any:
    """The default prior of one argument of a group, alike for all components."""
    overall = {a: getattr(model, f"overall_{name}") for a, name in group.parameters.items()}
    prior = group.family.priors(overall)[argument]
    return prior.expand([model.num_components, *prior.batch_shape]).to_event(1 + len(prior.batch_shape))
