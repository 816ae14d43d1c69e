r"""Locations that are linear in parameters: their M-step is weighted least squares.

Where the location of a Normal site is affine in coefficients, :math:`\mu(\theta + \delta) = \mu(\theta) + J \delta`,
the expected complete log-likelihood is a parabola in them, with its maximum at

.. math:: J^\top W J\, \delta = J^\top W (x - \mu), \qquad W = \text{posterior weight} / \text{variance}.

J comes from the autograd graph between parameters and location, whatever the program computes in between
(`pyro_lvm.infer.design`). A Normal prior on coefficients is one more site, whose value moves in place of its location:
ridge regression.

References:
    R. De Veaux (1989), Mixtures of linear regressions, Comput. Stat. Data Anal. 8(3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pyro_lvm.infer.design import Design, Moved
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.parameters import Parameter

__all__ = ["Regression", "find_regressions"]

# The normal equations are dense, and their eigenvectors take the cube of this number of operations.
MOST_COEFFICIENTS = 2000
# Telling coefficients apart takes a backward pass for each cell.
MOST_CELLS = 2000

Roles = Mapping[str, Collection[tuple[str, str]]]


@dataclass
class Regression:
    """Coefficients that are maximised together.

    Attributes:
        names: Their parameters.
        sites: The Normal sites that depend on them.
        priors: Those among the sites whose value they are.
        colours: Per site, the coefficient that each cell meets in each colour, shape (cells, colours).
        rows: Per site, the plates whose indices are rows.
    """

    names: tuple[str, ...]
    sites: tuple[str, ...]
    priors: tuple[str, ...] = ()
    colours: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: tuple[str, ...], sites: tuple[str, ...], expectation: Expectation) -> Regression | str:
        """The regression of some sites on some parameters, or why there is none."""
        coefficients = _values(names, expectation)
        count = sum(c.numel() for c in coefficients)
        found = cls(names, sites)
        for site in sites:
            factor = expectation.factors[site]
            designs = [Design(factor, coefficients, plates) for plates in _row_plates(factor)]
            if not designs[0].linear:
                return f"{site}.loc is not linear in {'it' if len(names) == 1 else ', '.join(names)}"
            coloured = [(d.colour(), d) for d in designs if d is designs[0] or d.cells <= MOST_CELLS]
            found.colours[site], best = min(coloured, key=lambda pair: pair[0].shape[1])
            found.rows[site] = best.plates
            found.priors += (site,) if best.moves_value else ()
        together = count  # as far as equations connect coefficients
        if _disjoint(list(found.colours.values()), count):
            together = max(entries.shape[1] for entries in found.colours.values())
        if together > MOST_COEFFICIENTS:
            return f"it takes up to {MOST_COEFFICIENTS} coefficients, here are {together}"
        return found

    def describe(self) -> str:
        """E.g. `a coefficient of x.loc (least squares)`."""
        shown = [f"{site}.loc" for site in self.sites if site not in self.priors]
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        prior = f", with a Normal prior ({', '.join(self.priors[:3])})" if self.priors else ""
        return f"a coefficient of {', '.join(shown[:3])}{more} (least squares){prior}"

    def solve(self, expectation: Expectation) -> tuple[dict[str, Tensor], dict[str, Moved]]:
        """The coefficients at the maximum, by name, and what that makes of the sites.

        Coefficients that the data do not determine (of states without weight, of collinear columns) move as little as
        they must.
        """
        coefficients = _values(self.names, expectation)
        designs = {site: Design(expectation.factors[site], coefficients, self.rows[site]) for site in self.sites}
        count = sum(c.numel() for c in coefficients)
        equations: list[tuple[Tensor, Tensor, Tensor]] = []
        for site, design in designs.items():
            columns = design.columns(self.colours[site])
            if not design.explained(self.colours[site], columns):  # these rows show more than those of the plan
                self.colours[site] = design.colour()
                columns = design.columns(self.colours[site])
            equations += design.equations(self.colours[site], columns)
        step = _least_squares(equations, count, torch.finfo(coefficients[0].dtype).eps)
        parts = step.split([c.numel() for c in coefficients])
        new = {
            name: (c.detach().double() + part.reshape(c.shape)).to(c.dtype)
            for name, c, part in zip(self.names, coefficients, parts, strict=True)
        }
        return new, {site: design.moved(step) for site, design in designs.items()}


def find_regressions(
    expectation: Expectation, roles: Roles, failed: Collection[str]
) -> tuple[list[Regression], dict[str, str]]:
    """Group parameters into regressions.

    Args:
        expectation: The E-step on whose graph to look.
        roles: Where each parameter is seen: pairs of site and argument ("value" for a prior's value).
        failed: Parameters that no closed form selects.

    Returns:
        The regressions, and for every other failed parameter of a location the reason why it is in none.
    """
    reasons: dict[str, str] = {}
    groups: list[tuple[tuple[str, ...], set[str]]] = []
    for name in failed:
        if any(argument == "loc" for _, argument in roles[name]):
            reason = _refusal(expectation, expectation.parameters[name], roles[name])
            if reason:
                reasons[name] = reason
                continue
            sites = {site for site, _ in roles[name]}
            near = [group for group in groups if group[1] & sites]
            names = tuple(n for group in near for n in group[0])
            groups = [group for group in groups if group not in near]
            groups.append(((*names, name), sites.union(*(group[1] for group in near))))
    found = []
    for names, sites in groups:
        ordered = tuple(site for site in expectation.factors if site in sites)
        regression = Regression.of(names, ordered, expectation)
        if isinstance(regression, str):
            reasons.update(dict.fromkeys(names, regression))
        else:
            found.append(regression)
    return found, reasons


def _refusal(expectation: Expectation, parameter: Parameter, roles: Collection[tuple[str, str]]) -> str:
    """Why a parameter cannot be a coefficient, if so."""
    for site, argument in roles:
        fn = innermost(expectation.factors[site].fn)
        if not isinstance(fn, torch.distributions.Normal):
            return f"{site} is {type(fn).__name__}, not Normal"
        if argument not in ("loc", "value"):
            return f"it is seen by {site}.{argument} too"
    constraint = parameter.constraint
    while isinstance(constraint, torch.distributions.constraints.independent):
        constraint = constraint.base_constraint
    if constraint not in (torch.distributions.constraints.real, torch.distributions.constraints.real_vector):
        return f"it is constrained ({constraint})"
    return ""


def _row_plates(factor: Factor) -> list[frozenset[str]]:
    """Plates to try as rows: all of them, or one where coefficients go along with the others (a plate of outputs)."""
    names = [frame.name for frame in factor.site["cond_indep_stack"] if frame.vectorized]
    return [frozenset(names), *(frozenset([name]) for name in names if len(names) > 1)]


def _values(names: tuple[str, ...], expectation: Expectation) -> list[Tensor]:
    return [expectation.parameters[name].value for name in names]


def _least_squares(equations: list[tuple[Tensor, Tensor, Tensor]], count: int, precision: float) -> Tensor:
    """The shortest solution of the normal equations of cells, every coefficient in units of its own column."""
    device = equations[0][0].device if equations else None
    step = torch.zeros(count + 1, dtype=torch.float64, device=device)  # one coefficient more stands for "none"
    if not all(bool(torch.isfinite(square.sum() + right.sum())) for _, square, right in equations):
        return step[:-1]
    if _disjoint([index for index, _, _ in equations], count):
        for index, square, right in equations:
            step[index] = _shortest(square, right, precision)
        return step[:-1]
    normal = torch.zeros(count + 1, count + 1, dtype=torch.float64, device=device)
    moment = torch.zeros_like(step)
    for index, square, right in equations:
        pairs = index.unsqueeze(-1) * (count + 1) + index.unsqueeze(1)
        normal.view(-1).index_add_(0, pairs.reshape(-1), square.reshape(-1))
        moment.index_add_(0, index.reshape(-1), right.reshape(-1))
    normal, moment, step = normal[:-1, :-1], moment[:-1], step[:-1]
    for block in _blocks(normal):
        step[block] = _shortest(normal[block.unsqueeze(-1), block.unsqueeze(-2)], moment[block], precision)
    return step


def _disjoint(entries: list[Tensor], count: int) -> bool:
    """Whether no two cells share a coefficient."""
    every = torch.cat([index.reshape(-1) for index in entries]) if entries else torch.zeros(0, dtype=torch.long)
    return bool((torch.bincount(every, minlength=count + 1)[:-1] <= 1).all())


def _shortest(square: Tensor, right: Tensor, precision: float) -> Tensor:
    """The shortest solutions of systems of equations, (systems, size, size) and (systems, size)."""
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    unit = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(square * unit.unsqueeze(-1) * unit.unsqueeze(-2))
    # squares of singular values: columns are known to `precision`, their products to that of float64
    least = square.shape[-1] * max(1e-14, (10 * precision) ** 2)
    inverse = torch.where(values > least, values.reciprocal(), 0.0).unsqueeze(-1)
    return unit * (vectors @ (inverse * (vectors.mT @ (unit * right).unsqueeze(-1)))).squeeze(-1)


def _blocks(normal: Tensor) -> list[Tensor]:
    """Coefficients that no equation connects, those of two states for example, as (blocks, size) for every size."""
    _, labels = connected_components(csr_matrix((normal != 0).cpu().numpy()), directed=False)
    label = torch.from_numpy(labels).to(normal.device).long()
    size = torch.bincount(label)
    order = label.argsort(stable=True)
    return [order[size[label[order]] == width].reshape(-1, width) for width in size.unique().tolist()]
