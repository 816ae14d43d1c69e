r"""Heterogeneous mixture: rows of numbers, counts, answers and yes-or-nos come from one of K components.

.. math::

    z_n &\sim \mathrm{Categorical}(w) \\
    x_{nj} \mid z_n = k &\sim F_j(\theta_{kj})
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from pyro_lvm.distributions.columns import FAMILIES, Categorical, ColumnFamily, count_answers
from pyro_lvm.models.factorised_mixture import FactorisedMixture, Group
from pyro_lvm.models.mixture import Priors

__all__ = ["HeterogeneousMixture"]

# Whole numbers from 0 up are taken for answers to a question if all are below this, else for counts.
MOST_ANSWERS = 10


class HeterogeneousMixture(FactorisedMixture):
    r"""Mixture over tables whose columns are of different kinds, independent given the component.

    ===============  =============================================  ==========================================
    kind             values                                         parameters, each (K, number of such columns)
    ===============  =============================================  ==========================================
    "normal"         real numbers                                   `normal_loc`, `normal_scale`
    "lognormal"      positive numbers, several orders of magnitude  `lognormal_loc`, `lognormal_scale`
    "gamma"          positive numbers                               `gamma_concentration`, `gamma_rate`
    "exponential"    waiting times                                  `exponential_rate`
    "poisson"        counts                                         `poisson_rate`
    "bernoulli"      0 or 1                                         `bernoulli_probs`
    "categorical"    answers 0 to C - 1                             `categorical_C_probs` (K, columns, C)
    ===============  =============================================  ==========================================

    Columns of one kind (and, if categorical, of one number of answers C) are observed together at the site
    `x_<kind>`; `groups` tells which they are. The mixture weights are `weights`, shape (K,). Missing entries are NaN
    and are marginalised. With priors the parameters are sample sites; the default ones are weak and scaled by the
    data. A kind is a choice of scale as well: densities of a column under two kinds are comparable, densities of a
    column in two units are not.

    Args:
        num_components: K >= 1.
        columns: The kind of every column; or "auto", which guesses them from the data and warns with what it guessed.
        num_categories: Number of answers of each categorical column, in order; found from the data if None.
        priors: None for maximum likelihood; True for the default priors; or a dict that replaces some of them, each a
            distribution or a function of the model that returns one.

    Raises:
        ValueError: An argument is out of range.

    References:
        J. Vermunt, J. Magidson (2002), Latent class cluster analysis, in Applied Latent Class Analysis.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("voters").x
        >>> kinds = ["normal", "poisson", "categorical", "bernoulli"]
        >>> fit = lvm.fit(lvm.models.HeterogeneousMixture(3, kinds), x, seed=0, progress=False)
        >>> list(fit.params)
        ['weights', 'normal_loc', 'normal_scale', 'poisson_rate', 'categorical_7_probs', 'bernoulli_probs']
    """

    def __init__(
        self,
        num_components: int,
        columns: str | Sequence[str] = "auto",
        num_categories: Sequence[int] | None = None,
        priors: bool | Priors | None = None,
    ) -> None:
        super().__init__(num_components, priors)
        unknown = set([columns] if isinstance(columns, str) else columns) - {*FAMILIES, "auto"}
        if unknown or isinstance(columns, str) != (columns == "auto") or not columns:
            raise ValueError(
                f"HeterogeneousMixture: expected columns to be 'auto' or a list out of {', '.join(FAMILIES)}; "
                f"got {columns!r}."
            )
        self.columns: str | list[str] = columns if isinstance(columns, str) else list(columns)
        self.num_categories = None if num_categories is None else list(num_categories)
        asked = len([kind for kind in columns if kind == Categorical.name])
        given = self.num_categories
        if given is not None and (columns == "auto" or len(given) != asked or any(count < 1 for count in given)):
            raise ValueError(
                f"HeterogeneousMixture: expected num_categories to hold a number >= 1 for each of the {asked} "
                f"categorical columns; got {num_categories}."
            )
        if columns != "auto" and (given is not None or not asked):
            self._declare_unseen()

    def _learn_columns(self, x: Tensor) -> None:
        if isinstance(self.columns, str):
            self.columns = [guess_kind(column) for column in x.T]
            named = ", ".join(f"{j} {kind}" for j, kind in enumerate(self.columns))
            warnings.warn(f"HeterogeneousMixture: guessed columns {named}. Pass columns=[...] to choose.", stacklevel=2)
        if self.num_categories is None:
            asked = [column for column, kind in enumerate(self.columns) if kind == Categorical.name]
            self.num_categories = count_answers(x, self._name, asked)

    @property
    def _num_columns(self) -> int | None:
        return None if isinstance(self.columns, str) else len(self.columns)

    def _grouped(self) -> tuple[Group, ...]:
        counts = iter(self.num_categories or [])
        found: dict[str, tuple[ColumnFamily, list[int]]] = {}
        for column, kind in enumerate(self.columns):
            made = Categorical(next(counts)) if kind == Categorical.name else FAMILIES[kind]()
            name = f"{kind}_{made.num_categories}" if isinstance(made, Categorical) else kind
            found.setdefault(name, (made, []))[1].append(column)
        groups = []
        for name, (family, columns) in found.items():
            axes = (f"{name}_column", f"{name}_answer") if isinstance(family, Categorical) else (f"{name}_column",)
            parameters = {argument: f"{name}_{argument}" for argument in family.arguments}
            groups.append(Group(f"x_{name}", family, tuple(columns), parameters, axes))
        return tuple(groups)

    def _other_columns(self, given: int) -> str:
        return f"Pass columns with {given} kinds, or give {self._num_columns} columns."

    def _other_support(self, group: Group) -> str:
        return "Recode that column, or name another kind for it in columns."


def guess_kind(column: Tensor) -> str:
    """The kind of one column, by its known values.

    Zeros and ones are "bernoulli"; other whole numbers of which the least is 0 are "categorical" if all are below
    `MOST_ANSWERS`, else "poisson"; positive numbers of skewness above 1 are "lognormal"; all else is "normal".
    """
    values = column[column.isfinite()].double()
    distinct = values.unique()
    if bool(((distinct == 0) | (distinct == 1)).all()):
        return "bernoulli"
    if bool((distinct == distinct.floor()).all()) and distinct[0] == 0:
        return "categorical" if distinct[-1] < MOST_ANSWERS else "poisson"
    deviation = values - values.mean()
    skewness = deviation.pow(3).mean() / deviation.square().mean().pow(1.5)
    return "lognormal" if bool(distinct[0] > 0) and bool(skewness > 1) else "normal"
