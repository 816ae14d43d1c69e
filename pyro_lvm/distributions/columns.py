"""Families of table columns: the law of one column, its support, a start from clusters, and weak priors.

A model whose columns are independent given its latent state is a list of such families; see
`pyro_lvm.models.HeterogeneousMixture`. Missing entries are NaN throughout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints

__all__ = ["FAMILIES", "ColumnFamily", "count_answers"]

# A larger code is a number, an identifier or a typing error rather than an answer.
MOST_CATEGORIES = 1000
# Columns of the code of an answer by which rows are clustered.
LONGEST_CODE = 64

Arguments = dict[str, Tensor]


class ColumnFamily(ABC):
    """The law of columns of one kind, d at a time.

    Attributes:
        name: What users call it.
        arguments: The distribution's arguments and where each may lie.
        support: The values that occur, in words.
        examples: Values inside the support; the first stands where one is missing.
        bounded: Whether the likelihood of a constant column is.
    """

    name: ClassVar[str]
    arguments: ClassVar[dict[str, constraints.Constraint]]
    support: ClassVar[str]
    examples: ClassVar[tuple[float, ...]]
    bounded: ClassVar[bool] = True

    @abstractmethod
    def law(self, **arguments: Tensor) -> Any:
        """The distribution of single entries."""

    def contains(self, x: Float[Tensor, "n d"]) -> Bool[Tensor, "n d"]:
        """Which entries lie in the support."""
        return torch.isfinite(x)

    @abstractmethod
    def start(self, x: Float[Tensor, "n d"], members: Float[Tensor, "n k"]) -> Arguments:
        """Estimates from rows that belong to clusters with the given weights; each cluster sees one average row more.

        Args:
            x: Columns of this family, NaN where missing.
            members: How often every row counts in every cluster.

        Returns:
            By argument, shape (k, d) or (k, d, number of categories).
        """

    @abstractmethod
    def priors(self, overall: Arguments) -> dict[str, Any]:
        """Weak priors of one component, given the estimates over all rows, each of shape (d,) or (d, categories)."""

    def features(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Columns in which rows of one component are near to each other, NaN where missing."""
        return x

    def distribution(self, x: Tensor | None, arguments: Arguments) -> tuple[Any, Tensor | None]:
        """The joint law of the columns, missing entries masked out, and the value to observe it at."""
        law = self.law(**arguments)
        if x is None or not bool(torch.isnan(x.sum())):
            return law.to_event(1), x
        known = ~x.isnan()
        return law.mask(known).to_event(1), torch.where(known, x, torch.full_like(x, self.examples[0]))


def _average(x: Tensor, members: Tensor) -> Tensor:
    """Mean of the known entries by cluster, shape (k, ...), each cluster with one average row added."""
    known = ~x.isnan()
    value = torch.where(known, x, torch.zeros_like(x))
    every = members.sum(1)
    seen = torch.einsum("n,n...->...", every, known.to(x))
    overall = torch.einsum("n,n...->...", every, value) / torch.where(seen > 0, seen, 1)
    total = torch.einsum("nk,n...->k...", members, known.to(x))
    return (torch.einsum("nk,n...->k...", members, value) + overall) / (total + 1)


def _spread(x: Tensor, members: Tensor) -> Tensor:
    """Standard deviation of the known entries by cluster; the row added counts with the overall variance's share."""
    k, every = members.shape[-1], members.sum(1, keepdim=True)
    centre = _average(x, every)
    overall = _average((x - centre).square(), every)
    within = (x.unsqueeze(1) - _average(x, members)).square()
    known = ~within.isnan()
    square = torch.where(known, within, torch.zeros_like(within))
    total = torch.einsum("nk,nkd->kd", members, known.to(x))
    return ((torch.einsum("nk,nkd->kd", members, square) + overall / k**2) / (total + 1)).sqrt()


def _half_a_row(members: Tensor) -> float:
    """The smallest mean that n rows of zeros and ones allow to tell from none at all."""
    return 0.5 / (float(members.sum()) + 1)


class Normal(ColumnFamily):
    """Real numbers."""

    name = "normal"
    arguments: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = "real numbers"
    examples = (-1.0, 1.0)
    bounded = False

    def law(self, **arguments: Tensor) -> Any:
        return dist.Normal(**arguments)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        return {"loc": _average(x, members), "scale": _spread(x, members)}

    def priors(self, overall: Arguments) -> dict[str, Any]:
        loc, scale = overall["loc"], overall["scale"]
        return {"loc": dist.Normal(loc, 10 * scale), "scale": dist.LogNormal(scale.log(), torch.ones_like(scale))}


class _Positive(ColumnFamily):
    support = "positive numbers"
    examples = (0.5, 2.0)
    bounded = False

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(x) & (x > 0)

    def features(self, x: Tensor) -> Tensor:
        return x.log()


class LogNormal(_Positive, Normal):
    """Positive numbers whose logarithm is normal."""

    name = "lognormal"

    def law(self, **arguments: Tensor) -> Any:
        return dist.LogNormal(**arguments)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        return super().start(x.log(), members)


class Gamma(_Positive):
    """Positive numbers with an exponential tail."""

    name = "gamma"
    arguments: ClassVar = {"concentration": constraints.positive, "rate": constraints.positive}

    def law(self, **arguments: Tensor) -> Any:
        return dist.Gamma(**arguments)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        mean, variance = _average(x, members), _spread(x, members).square()
        return {"concentration": mean.square() / variance, "rate": mean / variance}

    def priors(self, overall: Arguments) -> dict[str, Any]:
        return {name: dist.LogNormal(v.log(), torch.full_like(v, 2.0)) for name, v in overall.items()}


class _Rate(ColumnFamily):
    arguments: ClassVar = {"rate": constraints.positive}
    examples = (1.0,)

    def priors(self, overall: Arguments) -> dict[str, Any]:
        rate = overall["rate"]
        return {"rate": dist.Gamma(torch.ones_like(rate), rate.reciprocal())}


class Exponential(_Rate):
    """Waiting times."""

    name = "exponential"
    support = "numbers >= 0"
    bounded = False

    def law(self, **arguments: Tensor) -> Any:
        return dist.Exponential(**arguments)

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(x) & (x >= 0)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        return {"rate": _average(x, members).reciprocal()}


class Poisson(_Rate):
    """Counts."""

    name = "poisson"
    support = "counts 0, 1, 2, ..."

    def law(self, **arguments: Tensor) -> Any:
        return dist.Poisson(**arguments)

    def contains(self, x: Tensor) -> Tensor:
        return torch.isfinite(x) & (x >= 0) & (x == x.floor())

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        return {"rate": _average(x, members).clamp_min(_half_a_row(members))}

    def features(self, x: Tensor) -> Tensor:
        return x.sqrt()  # steadies the variance of counts


class Bernoulli(ColumnFamily):
    """Yes or no."""

    name = "bernoulli"
    arguments: ClassVar = {"probs": constraints.unit_interval}
    support = "0 or 1"
    examples = (0.0, 1.0)

    def law(self, **arguments: Tensor) -> Any:
        return dist.Bernoulli(**arguments)

    def contains(self, x: Tensor) -> Tensor:
        return (x == 0) | (x == 1)

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        margin = _half_a_row(members)
        return {"probs": _average(x, members).clamp(margin, 1 - margin)}

    def priors(self, overall: Arguments) -> dict[str, Any]:
        one = torch.ones_like(overall["probs"])
        return {"probs": dist.Beta(one, one)}


class Categorical(ColumnFamily):
    """One of several answers, coded 0, 1, 2, ..., without an order.

    Args:
        num_categories: Number of answers of each of the columns.
    """

    name = "categorical"
    arguments: ClassVar = {"probs": constraints.simplex}

    def __init__(self, num_categories: int) -> None:
        self.num_categories = num_categories
        self.support = f"answers 0 to {num_categories - 1}"  # type: ignore[misc]  # depends on the questions
        self.examples = tuple(map(float, range(num_categories)))  # type: ignore[misc]

    def law(self, **arguments: Tensor) -> Any:
        return dist.Categorical(**arguments)

    def contains(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < self.num_categories) & (x == x.floor())

    def start(self, x: Tensor, members: Tensor) -> Arguments:
        overall = self._counts(x, members.sum(-1, keepdim=True))
        overall = overall / overall.sum(-1, keepdim=True).clamp_min(1)
        counts = self._counts(x, members)
        probs = (counts + overall) / (counts.sum(-1, keepdim=True) + 1)
        probs = probs.clamp_min(_half_a_row(members))
        return {"probs": probs / probs.sum(-1, keepdim=True)}

    def priors(self, overall: Arguments) -> dict[str, Any]:
        return {"probs": dist.Dirichlet(torch.ones_like(overall["probs"]))}

    def features(self, x: Tensor) -> Tensor:
        """One-hot codes, or random ones where those would be long: either way all answers are equally far apart."""
        c = self.num_categories
        width = min(c, LONGEST_CODE)
        codes = torch.eye(c) if c == width else torch.randn(c, width) / width**0.5
        chosen = codes.to(x)[x.nan_to_num(0.0).long()]
        return torch.where(x.isnan().unsqueeze(-1), torch.nan, chosen).flatten(1)

    def _counts(self, x: Tensor, members: Tensor) -> Tensor:
        """How often every answer to each question was given in each cluster, (k, d, c)."""
        n, d = x.shape
        known = ~x.isnan()
        places = torch.where(known, x, 0.0).long() + self.num_categories * torch.arange(d, device=x.device)
        weights = (members.unsqueeze(1) * known.unsqueeze(-1)).reshape(n * d, -1)
        total = torch.zeros(d * self.num_categories, members.shape[-1]).to(members)
        return total.index_add_(0, places.flatten(), weights).T.reshape(-1, d, self.num_categories)


def count_answers(x: Float[Tensor, "n d"], caller: str, columns: Sequence[int] | None = None) -> list[int]:
    """Number of answers to each question: one more than the largest code.

    Args:
        x: Rows, NaN where missing.
        caller: Who asks, for the error.
        columns: The questions; by default all columns.

    Raises:
        ValueError: A code is too large to be one of a list of answers.
    """
    columns = range(x.shape[1]) if columns is None else columns
    top = torch.where(x.isfinite(), x, 0).amax(0).clamp_min(0).tolist()
    for column in columns:
        if top[column] >= MOST_CATEGORIES:
            raise ValueError(
                f"{caller}: expected answers coded 0, 1, 2, ... in column {column}; got {top[column]:g}. "
                "Recode them, or give num_categories."
            )
    return [int(top[column]) + 1 for column in columns]


FAMILIES: dict[str, type[ColumnFamily]] = {
    family.name: family for family in (Normal, Bernoulli, Categorical, Poisson, Exponential, LogNormal, Gamma)
}
"""Column families by name."""
