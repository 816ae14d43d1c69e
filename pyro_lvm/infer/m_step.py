r"""What a closed-form M-step is, and what the engine wants to know of an exponential family.

A closed form maximises :math:`\sum_{c, n} w_{cn} \log p(x_n \mid \theta_c)` over one argument of a distribution, the
others held at their current value (conditional maximisation; for a location and the scale that it shares cells with,
one pass is the joint maximum). Every form is a pair of steps: *accumulate* statistics on the argument's cells, which
the caller scatter-adds into parameter blocks, and *solve* the summed statistics for a block.

`pyro_lvm.infer.families` has the forms of the standard families; register one of your own with
`closed_form.register(MyDistribution)`.

References:
    X.-L. Meng and D. Rubin (1993), Maximum likelihood estimation via the ECM algorithm, Biometrika 80(2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_lvm.ops.cells import compact

__all__ = [
    "Argument",
    "ClosedForm",
    "Conjugate",
    "ExponentialFamily",
    "Joint",
    "Reference",
    "Statistics",
    "View",
    "closed_form",
    "closed_form_of",
    "innermost",
    "unwrap",
]


class Statistics(dict[str, Tensor]):
    """Expected sufficient statistics by name, each of shape `cells` + its own trailing dimensions.

    Attributes:
        CONSTANT: Names of entries that are not sums over rows.
        rows: Distribution, value and weights that they were made of, for `Argument.late`; None if averaged since.
        scatter: A location, and the scatter matrices about it, as made last: sweeps ask for the same ones again.
    """

    CONSTANT: ClassVar[frozenset[str]] = frozenset({"centre", "floor"})

    def __init__(
        self, cells: torch.Size, rows: tuple[Any, Tensor, Tensor] | None = None, /, **statistics: Tensor
    ) -> None:
        super().__init__(statistics)
        self.cells = cells
        self.rows = rows
        self.scatter: tuple[Tensor, Tensor] | None = None


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class View:
    """One way of writing an argument, in which a parameter may appear as a plain selection.

    Attributes:
        name: What the parameter then is: "scale", "variance", "log scale", ...
        encode: From the argument's canonical value to this view, differentiable.
        decode: The inverse.
        normalised: "sum" or "shift" if the distribution normalises rows of this view.
        matrix: "symmetric" or "lower" if blocks of this view are such matrices.
        scales: Whether this view is the canonical value up to a constant that `Argument.rescale` undoes.
        given: The distribution's attribute that holds this view if it was built from it: what no arithmetic has
            touched is recognised in any unit of measurement.
    """

    name: str
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same
    normalised: str | None = None
    matrix: str | None = None
    scales: bool = False
    given: str | None = None

    def read(self, fn: Any, canonical: Tensor, event_dim: int) -> Tensor:
        """This view of a distribution's argument: as given, else from the canonical value."""
        given = None if self.given is None else vars(fn).get(self.given)
        return self.encode(canonical) if given is None else compact(given, event_dim)


@dataclass(frozen=True)
class Conjugate:
    r"""A prior that is conjugate to an argument.

    The accumulated sums, the prior's included, are natural parameters of the conditional posterior: their mode is what
    the argument's `solve` finds (MAP-EM), and the posterior itself is what coordinate ascent needs.

    Attributes:
        addition: What the prior adds to the sums.
        posterior: From sums to the posterior, a distribution of the prior's family.
        plug_in: The argument's canonical value whose log-density is the expected one up to a constant:
            :math:`\mathrm{E}_q[\eta(\theta)]` in natural parameters.
        gap: What makes up that constant, for `Argument.correct`.
    """

    addition: Callable[[Any], tuple[Tensor, ...]]
    posterior: Callable[..., Any] | None = None
    plug_in: Callable[[Any], Tensor] | None = None
    gap: Callable[[Any], Tensor] | None = None


Accumulate = Callable[[Statistics, dict[str, Tensor]], tuple[Tensor, ...]]
Solve = Callable[..., Tensor]


def _gap_itself(gap: Tensor, now: dict[str, Tensor]) -> Tensor:
    return gap


@dataclass(frozen=True)
class Argument:
    """One argument of a family with its closed form.

    Attributes:
        name: The argument's canonical name.
        read: The argument's canonical value from a distribution.
        accumulate: From statistics and the current canonical arguments to tensors on the cells.
        solve: From those tensors, summed over the cells of a block, to the block's canonical value; NaN where the
            block got no weight.
        views: The ways in which a parameter can be read off.
        event_dim: Dimensions of one block.
        same_cells: A cheaper pair of accumulate and solve, valid if no two cells share a block.
        late: A better pair of accumulate and solve, which goes back to `Statistics.rows` with the other arguments'
            new values (ECME); taken where the rows are there.
        conjugate: Conjugate priors, by name of a view and class of the prior.
        feasible: Moves sums that put a mode outside of the support (pseudo-counts below zero) to its boundary.
        rescale: What accumulated tensors become where the argument is a constant times the parameter.
        correct: From a posterior's gap and the plugged-in arguments, both on the cells, to what the expected
            log-density has more than the plugged-in one, nats.
    """

    name: str
    read: Callable[[Any], Tensor]
    accumulate: Accumulate
    solve: Solve
    views: tuple[View, ...]
    event_dim: int = 0
    same_cells: tuple[Accumulate, Solve] | None = None
    late: tuple[Accumulate, Solve] | None = None
    conjugate: dict[tuple[str, type], Conjugate] = field(default_factory=dict, hash=False)
    feasible: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None
    rescale: Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, ...]] | None = None

    correct: Callable[[Tensor, dict[str, Tensor]], Tensor] = _gap_itself

    def conjugate_to(self, view: View, prior: Any) -> Conjugate | None:
        """How a prior on the parameter behind a view is conjugate, or None if it is not."""
        for (name, kind), conjugate in self.conjugate.items():
            if name == view.name and isinstance(prior, kind):
                return conjugate
        return None


@dataclass(frozen=True)
class Joint:
    """Several arguments of a family maximised at once, where each has a parameter of its own with the same blocks.

    Attributes:
        names: The arguments.
        accumulate: From statistics to tensors on the cells.
        solve: From those tensors, summed by block, to the canonical values of all the arguments.
        warm: Whether it starts from the present values, which it then takes after the sums.
    """

    names: tuple[str, ...]
    accumulate: Callable[[Statistics], tuple[Tensor, ...]]
    solve: Callable[..., tuple[Tensor, ...]]
    warm: bool = False


class ClosedForm(ABC):
    """The closed-form M-step of one family: its arguments, in order of maximisation, and its statistics.

    Attributes:
        arguments: In order of maximisation.
        joint: A joint maximum of several of them, if there is one that maximising in turn does not reach at once.
        sweeps: How often to go through the arguments in turn, statistics fixed.
        additive: Whether statistics of different rows add up, entry by entry, so that batches can be averaged.
    """

    arguments: ClassVar[tuple[Argument, ...]]
    joint: ClassVar[Joint | None] = None
    sweeps: ClassVar[int] = 1
    additive: ClassVar[bool] = True

    def passes(self, statistics: Statistics) -> int:
        """How often to go through the arguments in turn; fewer than `sweeps` where statistics are large."""
        return self.sweeps

    @abstractmethod
    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        """Expected sufficient statistics on the cells of the arguments.

        Args:
            fn: The distribution, unwrapped.
            value: The site's value.
            weights: Posterior weight of each cell of the log-density, broadcastable to `fn`'s batch.
            variance_floor: Smallest variance allowed, relative to that of the value.
        """

    def score(self, fn: Any, value: Tensor) -> Tensor | None:
        """`fn.log_prob(value)` in a way that is faster or smaller, without a gradient; None if there is none here."""
        return None


@dataclass(frozen=True)
class Reference:
    """Where the values of a site lie: statistics are gathered about this point, so that nothing cancels.

    Attributes:
        centre: Shape of one row.
        variance: Shape of one row; what a variance floor is relative to.
        level: For families that keep their values' centre at zero: the unit, or the origin of the logarithms, that
            their statistics are measured from. A checkpoint holds these three and nothing that a subclass adds.
    """

    centre: Tensor
    variance: Tensor
    level: Tensor | None = None


class ExponentialFamily(ClosedForm):
    r"""A family in natural form, which the engine scores and learns by matrix products.

    .. math:: \log p(x \mid \theta) = \sum_j \eta_j(\theta) \cdot T_j(x) - A(\theta) + h(x)

    Values come with their event dimensions first, `(*event, *batch)`, and statistics :math:`T_j` go as
    `(*trailing_j, *batch)`; natural parameters :math:`\eta_j` are `(*batch, *trailing_j)`, as arguments are.

    Attributes:
        event_dim: Dimensions of one value.
        base_of_value: Whether the base measure depends on the value alone; it is then computed once.
        first_is_value: Whether the first statistic is the value itself; it may then be made in place.
    """

    event_dim: ClassVar[int] = 0
    first_is_value: ClassVar[bool] = False
    base_of_value: ClassVar[bool] = False

    @abstractmethod
    def sufficient(self, value: Tensor, fn: Any, reference: Reference | None) -> tuple[Tensor, ...]:
        """The statistics of values."""

    @abstractmethod
    def natural(self, fn: Any, reference: Reference | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """The natural parameters, with their trailing dimensions last, and the log-normalizer; not expanded."""

    def index(self, value: Tensor) -> Tensor | None:
        """Which entry of the only statistic of each value is one, the others being zero; None if they are not so."""
        return None

    def base(self, value: Tensor, fn: Any) -> Tensor | None:
        """The base measure h of values in the usual layout; None if zero."""
        return None

    def trailing(self, fn: Any) -> tuple[tuple[int, ...], ...]:
        """The trailing shapes of the statistics."""
        raise NotImplementedError

    def fill(self, value: Tensor, fn: Any, reference: Reference | None, out: tuple[Tensor, ...]) -> None:
        """Write the statistics into buffers."""
        for buffer, statistic in zip(out, self.sufficient(value, fn, reference), strict=True):
            buffer.copy_(statistic)

    def reference(self, fn: Any, value: Tensor, rows: tuple[int, ...], keepdim: bool = False) -> Reference | None:
        """Where values lie, summarised over the dimensions `rows`; None if the family needs none."""
        return None

    def collect(
        self, fn: Any, reference: Reference | None, total: Tensor, sums: tuple[Tensor, ...], variance_floor: float
    ) -> Statistics:
        """Name the sums of the statistics: `total` has the shape of the cells, `sums` theirs + trailing."""
        return Statistics(total.shape, total=total, **{f"sum_{j}": s for j, s in enumerate(sums)})

    def statistics(self, fn: Any, value: Tensor, weights: Tensor, variance_floor: float) -> Statistics:
        """By matrix products where the parameters have few cells and the value many rows."""
        from pyro_lvm.infer.gather import gather

        return gather(fn, value, weights, variance_floor)


@singledispatch
def closed_form(fn: Any) -> ClosedForm | None:
    """The closed form of a distribution's family, or None."""
    return None


def closed_form_of(*kinds: type) -> Callable[[type], type]:
    """Class decorator: the closed form of these distributions."""

    def register(form: type) -> type:
        instance = form()
        for kind in kinds:
            closed_form.register(kind)(lambda fn: instance)
        return form

    return register


def innermost(fn: Any) -> Any:
    """The distribution inside `Independent`, `Masked` and `Expanded` wrappers."""
    while isinstance(fn, (dist.MaskedDistribution, torch.distributions.Independent)):
        fn = fn.base_dist
    return fn


def unwrap(fn: Any, weights: Tensor) -> tuple[Any, Tensor]:
    """Strip `Independent`, `Masked` and `Expanded` wrappers; weights follow the batch shape inward."""
    while True:
        if isinstance(fn, dist.MaskedDistribution):
            weights = weights * fn._mask
            fn = fn.base_dist
        elif isinstance(fn, torch.distributions.Independent):
            weights = weights.reshape(*weights.shape, *([1] * fn.reinterpreted_batch_ndims))
            fn = fn.base_dist
        else:
            return fn, weights
