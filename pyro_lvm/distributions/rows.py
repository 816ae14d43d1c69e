"""Laws of whole rows in each of K states, for models that know the state of a row only by its row.

What `pyro_lvm.distributions.columns` is to a column, this is to a row, or to a step of a sequence: the parameters and
where they may lie, the distribution, a start from clusters, and weak priors. Missing entries are NaN throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.columns import Arguments, Categorical, ColumnFamily, count_answers

__all__ = ["Answers", "IndependentColumns", "Kind", "RowFamily"]


class Kind(NamedTuple):
    """What a parameter is.

    Attributes:
        constraint: Where a point estimate may lie.
        axes: Names of its axes.
    """

    constraint: constraints.Constraint
    axes: tuple[str, ...]


class RowFamily(ABC):
    """The law of rows of d columns in each of K states.

    Attributes:
        takes_gaps: Whether some of the entries of a row may be missing.
        data_dim: d; None until it is known.
        example: A value inside the support, to stand where one is missing.
    """

    takes_gaps: ClassVar[bool] = True
    data_dim: int | None = None
    example: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the shapes of all parameters are known."""
        return self.data_dim is not None

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Kind]:
        """The parameters by name, each one after those that its prior depends on."""

    @abstractmethod
    def law(self, parameters: Arguments, known: Bool[Tensor, "*batch d"] | None) -> Any:
        """The distribution of rows.

        Args:
            parameters: By name, states along the last dimension of the batch.
            known: Which entries are there; None if all are. The law is then the marginal of those.
        """

    @abstractmethod
    def start(self, x: Float[Tensor, "n d"], members: Float[Tensor, "n k"]) -> Arguments:
        """Estimates from rows that count so often in each of K clusters.

        Args:
            x: Rows, NaN where missing.
            members: How often every row counts in every cluster.
        """

    @abstractmethod
    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start and a summary before any rows are there, alike for all states."""

    def summary(self, x: Float[Tensor, "n d"], counts: Float[Tensor, " n"], num_states: int) -> Arguments:
        """What the default priors need to know about rows that count so often each."""
        return self.start(x, counts.unsqueeze(-1))

    @abstractmethod
    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """A weak prior of a parameter for all states, given the model's parameters before it."""

    def arrange(self, x: Float[Tensor, "n d"]) -> None:
        """Learn from rows what the constructor left open."""
        self.data_dim = x.shape[-1]

    def features(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Columns in which rows of one state are near to each other, NaN where missing."""
        return x

    def contains(self, x: Float[Tensor, "*n d"]) -> Bool[Tensor, "*n d"]:
        """Which entries lie in the support."""
        return torch.isfinite(x)

    support: str = "real numbers"
    other_support: str = "Drop or correct it."

    def check(self, caller: str, x: Float[Tensor, "n t d"]) -> None:
        """Raise a ValueError if a known entry of sequences lies outside of the support, or a gap is not taken."""
        bad = ~(self.contains(x) | x.isnan())
        if bool(bad.any()):
            row, step, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{caller}: expected {self.support} in column {column}; got {x[row, step, column].item():g} "
                f"in step {step} of sequence {row}. {self.other_support}"
            )
        known = ~x.isnan()
        if not self.takes_gaps and bool((known.any(-1) & ~known.all(-1)).any()):
            raise ValueError(
                f"{caller}: expected steps that are known or missing (NaN) as a whole; got some in part. "
                "Make all of such a step NaN."
            )

    @abstractmethod
    def check_training(self, caller: str, x: Float[Tensor, "n d"]) -> None:
        """Raise a ValueError if rows are not enough to learn from."""


class IndependentColumns(RowFamily):
    """Columns of one family, independent given the state.

    Args:
        family: The law of each column.
        data_dim: d; None if the rows tell.
        other_support: What to do with values outside the support, for the error.
        axes: Names of the parameters' axes after the state.
    """

    def __init__(
        self,
        family: ColumnFamily,
        data_dim: int | None = None,
        other_support: str = "Recode the column.",
        axes: tuple[str, ...] = ("dimension",),
    ) -> None:
        self.family = family
        self.data_dim = data_dim
        self.other_support = other_support
        self.axes = ("state", *axes)

    @property
    def parameters(self) -> dict[str, Kind]:
        """The arguments of the family."""
        return {name: Kind(constraint, self.axes) for name, constraint in self.family.arguments.items()}

    @property
    def example(self) -> float:  # type: ignore[override]  # depends on the family
        """The family's."""
        return self.family.examples[0]

    @property
    def support(self) -> str:  # type: ignore[override]
        """The family's."""
        return self.family.support

    def law(self, parameters: Arguments, known: Tensor | None) -> Any:
        """The distribution of rows."""
        law = self.family.law(**parameters)
        return (law if known is None else law.mask(known)).to_event(1)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        """Estimates by cluster."""
        return self.family.start(x, members)

    def unseen(self, num_states: int) -> tuple[Arguments, Arguments]:
        """A start before any rows are there."""
        x = torch.tensor(self.family.examples).unsqueeze(-1).expand(-1, self.data_dim or 1)
        start = self.family.start(x, torch.full((len(x), num_states), 1 / num_states))
        return start, self.family.start(x, torch.ones(len(x), 1))

    def prior(self, name: str, model: Any, summary: Arguments, num_states: int) -> Any:
        """A weak prior."""
        prior = self.family.priors({argument: value[0] for argument, value in summary.items()})[name]
        return prior.expand([num_states, *prior.batch_shape]).to_event(1 + len(prior.batch_shape))

    def features(self, x: Tensor) -> Tensor:
        """Columns to cluster by."""
        return self.family.features(x)

    def contains(self, x: Tensor) -> Tensor:
        """Which entries lie in the support."""
        return self.family.contains(x)

    def check_training(self, caller: str, x: Tensor) -> None:
        """Raise a ValueError if rows are not enough to learn from."""
        known = ~x.isnan()
        empty = (~known.any(0)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{caller}: expected known entries in every column; column {empty[0]} has none. Drop it.")
        for column in () if self.family.bounded else range(x.shape[1]):
            values = x[known[:, column], column]
            if bool((values == values[0]).all()):
                raise ValueError(
                    f"{caller}: expected {self.family.name} columns that vary; got constant column {column} "
                    f"(always {values[0].item():g}), whose likelihood is unbounded. Drop it."
                )


class Answers(IndependentColumns):
    """Columns of symbols 0 to C - 1.

    Args:
        num_categories: C; None if the rows tell.
        data_dim: d; None if the rows tell.
        other_support: As for `IndependentColumns`.
        axes: As for `IndependentColumns`.
    """

    def __init__(
        self,
        num_categories: int | None,
        data_dim: int | None = None,
        other_support: str = "Recode the symbols, or give num_categories.",
        axes: tuple[str, ...] = ("dimension", "symbol"),
    ) -> None:
        super().__init__(Categorical(num_categories or 1), data_dim, other_support, axes)
        self.num_categories = num_categories

    @property
    def complete(self) -> bool:
        """Whether the numbers of columns and symbols are known."""
        return super().complete and self.num_categories is not None

    def arrange(self, x: Tensor) -> None:
        """Learn from rows what the constructor left open."""
        super().arrange(x)
        if self.num_categories is None:
            self.num_categories = max(count_answers(x, "CategoricalHMM"))
            self.family = Categorical(self.num_categories)
