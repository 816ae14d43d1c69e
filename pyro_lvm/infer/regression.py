r"""Locations that are linear in parameters: their M-step is weighted least squares.

Where the location of a Normal site is affine in coefficients, :math:`\mu(\theta + \delta) = \mu(\theta) + J \delta`,
the expected complete log-likelihood is a parabola in them, with its maximum at

.. math:: J^\top W J\, \delta = J^\top W (x - \mu), \qquad W = \text{posterior weight} / \text{variance}.

J comes from the autograd graph between parameters and location, whatever the program computes in between. It has far
fewer columns than coefficients: those of different components never meet in one cell (a state and an output) of the
location. Coefficients that no cell shares get one *colour*; the derivative along all coefficients of a colour at once
is one column of the design matrix of every cell. A Normal prior on coefficients is one more site, whose value moves in
place of its location: ridge regression.

References:
    A. Curtis, M. Powell, J. Reid (1974), On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 13.
    R. De Veaux (1989), Mixtures of linear regressions, Comput. Stat. Data Anal. 8(3).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_lvm.infer.enumeration import Expectation, Factor
from pyro_lvm.infer.m_step import unwrap
from pyro_lvm.infer.parameters import Parameter
from pyro_lvm.ops.cells import compact

__all__ = ["Moved", "Regression", "find_regressions"]

# The normal equations are dense: beyond, an L-BFGS step costs less.
MOST_COEFFICIENTS = 2000
# Numbers of the design matrices that are laid out at a time.
BLOCK_NUMBERS = 1 << 20

Roles = Mapping[str, Collection[tuple[str, str]]]


@dataclass(frozen=True)
class Moved:
    """A site after the coefficients have changed.

    Attributes:
        loc: The new location, where that is what changed.
        value: The new value, where a prior's value is what changed.
        spread: Variance of the value over the rows: what a variance floor is relative to.
    """

    loc: Tensor | None
    value: Tensor | None
    spread: Tensor


@dataclass
class Regression:
    """Coefficients that are maximised together.

    Attributes:
        names: Their parameters.
        sites: The Normal sites that depend on them.
        priors: Those among the sites whose value they are.
        colours: Per site, the coefficient that each cell meets in each colour, shape (cells, colours).
    """

    names: tuple[str, ...]
    sites: tuple[str, ...]
    priors: tuple[str, ...] = ()
    colours: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, names: tuple[str, ...], sites: tuple[str, ...], expectation: Expectation) -> Regression | str:
        """The regression of some sites on some parameters, or why there is none."""
        coefficients = _values(names, expectation)
        count = sum(c.numel() for c in coefficients)
        if count > MOST_COEFFICIENTS:
            return f"it takes up to {MOST_COEFFICIENTS} coefficients, here are {count}"
        designs = {site: _Design(expectation.factors[site], coefficients) for site in sites}
        for site, design in designs.items():
            if not design.linear:
                return f"{site}.loc is not linear in {'it' if len(names) == 1 else ', '.join(names)}"
        priors = tuple(site for site, design in designs.items() if design.moves_value)
        return cls(names, sites, priors, {site: design.colour() for site, design in designs.items()})

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
        designs = {site: _Design(expectation.factors[site], coefficients) for site in self.sites}
        count = sum(c.numel() for c in coefficients)
        # one coefficient more stands for "none"
        normal = torch.zeros(count + 1, count + 1, dtype=torch.float64, device=coefficients[0].device)
        moment = torch.zeros_like(normal[0])
        for site, design in designs.items():
            columns = design.columns(self.colours[site])
            if not design.explained(self.colours[site], columns):  # these rows show more than those of the plan
                self.colours[site] = design.colour()
                columns = design.columns(self.colours[site])
            design.add(normal, moment, self.colours[site], columns)
        step = _least_squares(normal[:-1, :-1], moment[:-1], torch.finfo(coefficients[0].dtype).eps)
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
        fn = unwrap(expectation.factors[site].fn, torch.ones(()))[0]
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


class _Design:
    """The mean of a Normal site minus its value, as a function of coefficients, its entries laid out as (cells, rows).

    Rows are the indices of plates, cells those of everything else: states, and outputs of one row.
    """

    def __init__(self, factor: Factor, coefficients: list[Tensor]) -> None:
        self.factor = factor
        self.coefficients = coefficients
        self.fn, _ = unwrap(factor.fn, torch.ones(()))
        value = factor.value
        self.shape = torch.broadcast_shapes(self.fn.batch_shape, value.shape)
        inside, ndim = len(self.fn.batch_shape) - len(factor.fn.batch_shape), len(self.shape)
        plates = {ndim + f.dim - inside for f in factor.site["cond_indep_stack"] if f.vectorized}
        self.row_dims = [d for d in range(ndim) if d in plates]
        self.cell_dims = [d for d in range(ndim) if d not in plates]
        self.cells = math.prod(self.shape[d] for d in self.cell_dims)
        self.moves_value = isinstance(value, Tensor) and value.requires_grad
        with torch.enable_grad():
            loc = compact(self.fn.loc)
            self.mean = loc - value if self.moves_value else loc
            self.cotangent = torch.zeros_like(self.mean, requires_grad=True)
            self.pulled = torch.autograd.grad(
                self.mean, coefficients, self.cotangent, create_graph=True, retain_graph=True, allow_unused=True
            )

    @property
    def linear(self) -> bool:
        """Whether the derivative is the same everywhere: its graph must not come back to the coefficients."""
        product = self.product(1 + _noise(self._count, self.mean), keep_graph=True)
        if not product.requires_grad:
            return True
        found = torch.autograd.grad(product.sum(), self.coefficients, retain_graph=True, allow_unused=True)
        return all(gradient is None for gradient in found)

    @property
    def _count(self) -> int:
        return sum(c.numel() for c in self.coefficients)

    def product(self, tangent: Tensor, keep_graph: bool = False) -> Tensor:
        """How the mean moves along a direction (coefficients,): the backward pass is linear in its cotangent."""
        parts = tangent.split([c.numel() for c in self.coefficients])
        used = [
            (pulled, part.reshape(pulled.shape).to(pulled.dtype))
            for pulled, part in zip(self.pulled, parts, strict=True)
            if pulled is not None and pulled.requires_grad
        ]
        if not used:
            return torch.zeros_like(self.mean)
        outputs, tangents = zip(*used, strict=True)
        with torch.enable_grad():
            (moved,) = torch.autograd.grad(
                outputs, self.cotangent, tangents, retain_graph=True, create_graph=keep_graph, allow_unused=True
            )
        return torch.zeros_like(self.mean) if moved is None else moved

    def table(self, tensor: Tensor) -> Tensor:
        """Lay out as (cells, rows), or (1, rows) if all cells are the same."""
        tensor = tensor.reshape((1,) * (len(self.shape) - tensor.dim()) + tuple(tensor.shape))
        alike = all(tensor.shape[d] == 1 for d in self.cell_dims)
        shape = [1 if alike and d in self.cell_dims else size for d, size in enumerate(self.shape)]
        return tensor.expand(shape).permute((*self.cell_dims, *self.row_dims)).reshape(1 if alike else self.cells, -1)

    def colour(self) -> Tensor:
        """Give coefficients that meet in no cell one colour: (cells, colours), the number of coefficients for none."""
        rows = math.prod(self.shape[d] for d in self.row_dims)
        noise = 1 + _noise(rows, self.mean)
        meets = torch.zeros(self._count, self.cells, dtype=torch.bool, device=self.mean.device)
        sizes = [self.shape[d] for d in (*self.cell_dims, *self.row_dims)]
        back = torch.tensor([*self.cell_dims, *self.row_dims]).argsort().tolist()
        for cell in range(self.cells):
            cotangent = torch.zeros(self.cells, rows, dtype=self.mean.dtype, device=self.mean.device)
            cotangent[cell] = noise
            cotangent = cotangent.reshape(sizes).permute(back).sum_to_size(self.mean.shape)
            found = torch.autograd.grad(
                self.mean, self.coefficients, cotangent, retain_graph=True, materialize_grads=True
            )
            meets[:, cell] = torch.cat([gradient.reshape(-1) for gradient in found]) != 0
        entries = torch.full((self.cells, 0), self._count, device=self.mean.device)
        for coefficient in meets.any(1).nonzero().flatten().tolist():
            mine = meets[coefficient]
            free = (entries[mine] == self._count).all(0).nonzero().flatten()
            if not len(free):
                entries = torch.cat([entries, entries.new_full((self.cells, 1), self._count)], 1)
            entries[mine, int(free[0]) if len(free) else -1] = coefficient
        return entries

    def columns(self, entries: Tensor) -> list[Tensor]:
        """The column of each colour, (cells, rows), or (1, rows) if it is the same in all cells."""
        tangents = self.mean.new_zeros(entries.shape[1], self._count + 1)
        tangents = tangents.scatter(1, entries.T, 1.0)[:, :-1]
        columns = []
        for tangent in tangents:
            column = self.table(self.product(tangent))
            columns.append(column[:1].clone() if bool((column == column[:1]).all()) else column)
        return columns

    def explained(self, entries: Tensor, columns: list[Tensor]) -> bool:
        """Whether the columns make up the whole derivative."""
        if len(entries) != self.cells:
            return False
        count = self._count
        noise = torch.cat([_noise(count, self.mean), self.mean.new_zeros(1)])
        expected = self.mean.new_zeros(self.cells, 1)
        size = torch.zeros_like(expected)
        for column, coefficient in zip(columns, entries.T, strict=True):
            part = column * noise[coefficient].unsqueeze(-1)
            expected, size = expected + part, size + part.abs()
        difference = (self.table(self.product(noise[:count])) - expected).abs()
        rounding = (16 + len(columns)) * torch.finfo(self.mean.dtype).eps
        return bool((difference <= rounding * size).all())

    def add(self, normal: Tensor, moment: Tensor, entries: Tensor, columns: list[Tensor]) -> None:
        """Add this site to the normal equations."""
        if not columns:
            return
        fn, weights = unwrap(self.factor.fn, self.factor.weights)
        precision = self.table((weights / compact(fn.scale).square()).detach().expand(self.shape)).double()
        residual = self.table((self.factor.value - fn.loc).detach().expand(self.shape)).double()
        residual = torch.where(precision > 0, residual, 0.0)
        precision, residual = precision.expand(self.cells, -1), residual.expand(self.cells, -1)
        width, rows = len(columns), precision.shape[1]
        step = max(1, BLOCK_NUMBERS // (width * rows))
        for start in range(0, self.cells, step):
            part = slice(start, start + step)
            design = torch.stack([column.expand(self.cells, -1)[part] for column in columns], 1).double()
            weighted = design * precision[part].unsqueeze(1)
            index = entries[part]
            pairs = index.unsqueeze(-1) * len(moment) + index.unsqueeze(1)
            normal.view(-1).index_add_(0, pairs.reshape(-1), (weighted @ design.mT).reshape(-1))
            moment.index_add_(0, index.reshape(-1), (weighted @ residual[part].unsqueeze(-1)).reshape(-1))

    def moved(self, step: Tensor) -> Moved:
        """The site after a step of the coefficients."""
        change, value = self.product(step), self.factor.value
        dims = [d - len(self.shape) for d in self.row_dims if d - len(self.shape) >= -value.dim()]
        spread = value.detach().double()
        spread = spread.var(dims, correction=0, keepdim=True) if dims else torch.zeros_like(spread)
        if self.moves_value:
            return Moved(None, (value - change).detach(), spread)
        return Moved((self.mean + change).detach(), None, spread)


def _values(names: tuple[str, ...], expectation: Expectation) -> list[Tensor]:
    return [expectation.parameters[name].value for name in names]


def _least_squares(normal: Tensor, moment: Tensor, precision: float) -> Tensor:
    """The shortest solution of normal equations, every coefficient in units of its own column."""
    if not bool(torch.isfinite(normal).all() & torch.isfinite(moment).all()):
        return torch.zeros_like(moment)
    diagonal = normal.diagonal()
    unit = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    values, vectors = torch.linalg.eigh(normal * unit * unit.unsqueeze(-1))
    # squares of singular values: columns are known to `precision`, their products to that of float64
    least = len(moment) * max(1e-14, (10 * precision) ** 2)
    inverse = torch.where(values > least, values.reciprocal(), 0.0)
    return unit * (vectors @ (inverse * (vectors.mT @ (unit * moment))))


def _noise(count: int, like: Tensor) -> Tensor:
    """A direction without pattern, the same at every call: fractional parts of multiples of the golden ratio."""
    steps = torch.arange(1, count + 1, dtype=torch.float64, device=like.device)
    return (steps * 0.6180339887498949).frac().sub(0.5).to(like.dtype)
