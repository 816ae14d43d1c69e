r"""Maximum likelihood of a square linear map of independent sources, by quasi-Newton steps that do not depend on units.

With :math:`y = W^{-1} (x - b)` and :math:`\psi_i = -(\log p_i)'`, steps are relative, :math:`y \leftarrow e^E y + t`,
and the mean loss has the gradient

.. math::

    \frac{\partial L}{\partial E_{ij}} = \overline{\psi_i(y_i)\, y_j} - \delta_{ij}, \qquad
    \frac{\partial L}{\partial t_i} = \overline{\psi_i(y_i)}

Near independence its Hessian falls into blocks of two: with :math:`h_i = \overline{\psi_i'(y_i)}` and
:math:`\sigma_j^2 = \overline{y_j^2}`, that of :math:`(E_{ij}, E_{ji})` is
:math:`\begin{pmatrix} h_i \sigma_j^2 & 1 \\ 1 & h_j \sigma_i^2 \end{pmatrix}`. They precondition L-BFGS.

Other than in the paper, a difference quotient stands for the derivative of :math:`\psi`, and kinks are rounded off ever
more narrowly before the end, so that densities with a kink are served; the step is the exponential of E, so that no map
is singular; the shift t, and degrees of freedom, move along with E.

References:
    P. Ablin, J.-F. Cardoso, A. Gramfort (2018), Faster independent component analysis by preconditioning with Hessian
        approximations, IEEE Transactions on Signal Processing 66(15), equations 4, 8 and 10, algorithms 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_lvm.ops.source_scores import Density, student_t_information

__all__ = ["Climbed", "climb"]

LEAST_CURVATURE = 0.01  # of a block of the Hessian: as in the paper's experiments
BANDWIDTH = 0.2  # of the difference quotient, in standard deviations of a source
CURVATURE_ROWS = 2000  # as many show a curvature to a tenth, which is near enough for a preconditioner
MEMORY = 10  # pairs of L-BFGS
HALVINGS = 8  # of a step; shorter ones move nothing that rows could tell
LONGEST = 1.0  # entry of a step
ROUNDED = (1.0, 0.25, 0.05, 0.012)  # widths over which a kink is rounded off, one after the other
RESTED = 1e-3  # fall of the loss, in squared widths, that is not worth another step: rounding off changes it by more
NEGLIGIBLE = 0.01  # nats of a source over all rows that are not worth one either, where there is a kink
AT_KINKS = 3  # steps, and tries of each, at the end where there are kinks: the rows under them hold the point


class Climbed(NamedTuple):
    """Where steps led: the sources are now :math:`M y + t`.

    Attributes:
        matrix: M, shape (k, k).
        shift: t, shape (k,).
        freedom: Degrees of freedom, shape (k,), or None.
        loss: Minus the mean log-density of a row of the first sources, nats.
        last_loss: The same at the end, by these rows' units.
        steps: Steps taken.
        evaluations: Of the density on all rows.
    """

    matrix: Tensor
    shift: Tensor
    freedom: Tensor | None
    loss: float
    last_loss: float
    steps: int
    evaluations: int


@dataclass
class _Point:
    """A point of the climb with its loss and gradient."""

    y: Tensor
    matrix: Tensor
    shift: Tensor
    log_freedom: Tensor | None
    volume: float
    loss: float = torch.inf
    gradient: Tensor = field(default_factory=lambda: torch.empty(0))
    ended: Tensor | None = None  # which degrees of freedom are at a limit that the gradient pushes against


class _Climb:
    def __init__(self, density: Density, weights: Tensor, limits: tuple[float, float]) -> None:
        self.density, self.evaluations, self.width = density, 0, 0.0
        self.rows = float(weights.sum())
        self.weights = weights / self.rows
        self.limits = torch.tensor(limits, dtype=torch.float64).log().tolist()

    @property
    def at_kinks(self) -> bool:
        """Whether gradients are those beside kinks, which tell little."""
        return self.density.kinked and not self.width

    def negligible(self, point: _Point) -> float:
        """Fall of the mean loss that is not worth a step: rounding, or what is left to narrower widths."""
        rounding = 4 * torch.finfo(point.y.dtype).eps * max(1.0, abs(point.loss))
        share = point.y.shape[1] * NEGLIGIBLE / self.rows if self.density.kinked else 0.0
        return max(RESTED * self.width**2, share, rounding)

    def mean(self, table: Tensor) -> Tensor:
        """Over rows."""
        return self.weights @ table

    def scored(self, point: _Point) -> _Point:
        """The same point with its loss and its gradient by (E, t, log degrees of freedom), in one vector."""
        y, log_freedom = point.y, point.log_freedom
        found = self.density(y, None if log_freedom is None else log_freedom.exp(), self.width)
        self.evaluations += 1
        loss = -float(self.mean(found.log_prob).sum()) - point.volume
        left = found.score * self.weights.unsqueeze(-1)
        relative = left.mT @ y - torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        parts, ended = [relative.flatten(), left.sum(0)], None
        if log_freedom is not None and found.slope is not None:
            slope = -self.mean(found.slope)
            low, high = self.limits
            ended = ((log_freedom <= low) & (slope > 0)) | ((log_freedom >= high) & (slope < 0))
            parts.append(torch.where(ended, 0.0, slope))
        return replace(point, loss=loss, gradient=torch.cat(parts), ended=ended)

    def moved(self, point: _Point, step: Tensor) -> _Point:
        """The point after a step, scored."""
        k = point.y.shape[1]
        relative, shift = step[: k * k].reshape(k, k), step[k * k : k * k + k]
        power = torch.linalg.matrix_exp(relative)
        log_freedom = point.log_freedom
        if log_freedom is not None:
            log_freedom = (log_freedom + step[k * k + k :]).clamp(*self.limits)
        return self.scored(
            _Point(
                torch.addmm(shift, point.y, power.mT),
                power @ point.matrix,
                power @ point.shift + shift,
                log_freedom,
                point.volume + float(relative.trace()),
            )
        )

    def preconditioner(self, point: _Point) -> Callable[[Tensor], Tensor]:
        """The inverse of the Hessian's blocks, as a function of a gradient."""
        y, k = point.y, point.y.shape[1]
        few = y[:: max(1, len(y) // CURVATURE_ROWS)]
        freedom = None if point.log_freedom is None else point.log_freedom.exp()
        second = self.mean(y.square())
        width = BANDWIDTH * second.sqrt()
        above, below = (self.density(few + sign * width, freedom).score for sign in (1, -1))
        quotient = (above - below) / (2 * width)
        curvature = quotient.mean(0).clamp_min(LEAST_CURVATURE)
        own = (1 + (quotient * few.square()).mean(0)).clamp_min(LEAST_CURVATURE)
        a = curvature.unsqueeze(-1) * second
        middle, half = 0.5 * (a + a.mT), 0.5 * (a - a.mT)
        a = a + (LEAST_CURVATURE - (middle - (half.square() + 1).sqrt())).clamp_min(0)
        b = a.mT
        determinant = a * b - 1
        determinant.fill_diagonal_(1)  # not used
        tied = None if freedom is None or point.ended is None else student_t_information(freedom, point.ended)

        def solve(gradient: Tensor) -> Tensor:
            g, t = gradient[: k * k].reshape(k, k), gradient[k * k : k * k + k]
            relative = (b * g - g.mT) / determinant
            if tied is None:
                return torch.cat([relative.diagonal_scatter(g.diagonal() / own).flatten(), t / curvature])
            pair = torch.stack([g.diagonal(), gradient[k * k + k :]], -1)
            pair = torch.linalg.solve(tied, pair)
            return torch.cat([relative.diagonal_scatter(pair[:, 0]).flatten(), t / curvature, pair[:, 1]])

        return solve


def climb(
    y: Tensor,
    density: Density,
    *,
    weights: Tensor | None = None,
    freedom: Tensor | None = None,
    limits: tuple[float, float] = (1.0, 200.0),
    steps: int = 20,
) -> Climbed:
    """Some steps uphill on the likelihood; it never falls.

    Args:
        y: Sources at the start, shape (n, k), float64.
        density: Log-densities and scores of sources.
        weights: How much each row counts, shape (n,); all alike if None.
        freedom: Degrees of freedom of the sources, shape (k,), where they are learned.
        limits: Between which they are.
        steps: At most, and half as many at every width of a kink.

    Returns:
        The map from the sources at the start to those at the end.

    References:
        P. Ablin, J.-F. Cardoso, A. Gramfort (2018), algorithm 3 (preconditioned L-BFGS).
    """
    k = y.shape[1]
    run = _Climb(density, y.new_ones(len(y)) if weights is None else weights, limits)
    start = _Point(y, torch.eye(k, dtype=y.dtype, device=y.device), y.new_zeros(k), None, 0.0)
    if freedom is not None:
        start.log_freedom = freedom.to(y).clamp(*limits).log()
    point = run.scored(start)
    first, taken = point, 0
    for width in _widths(run, point) if density.kinked else ():
        run.width = width
        point, more = _descended(run, run.scored(point), max(1, steps // 2))
        taken += more
    run.width = 0.0
    last = AT_KINKS if density.kinked else steps
    point, more = _descended(run, run.scored(point) if taken else first, last)
    taken += more
    if not point.loss < first.loss:
        point, taken = first, 0
    end = None if point.log_freedom is None else point.log_freedom.exp()
    return Climbed(point.matrix, point.shift, end, first.loss, point.loss, taken, run.evaluations)


def _widths(run: _Climb, point: _Point) -> tuple[float, ...]:
    """Those that are worth while: none where the narrowest has little to offer, as after another climb."""
    run.width = ROUNDED[-1]
    near = run.scored(point)
    solve = run.preconditioner(near)
    return ROUNDED if _promise(near.gradient, -solve(near.gradient)) > 4 * run.negligible(near) else ()


def _promise(gradient: Tensor, direction: Tensor) -> float:
    """How far the loss would fall along a Newton step."""
    return -0.5 * float(direction @ gradient)


def _descended(run: _Climb, point: _Point, steps: int) -> tuple[_Point, int]:
    """Where up to so many steps of preconditioned L-BFGS lead, and how many they were."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for taken in range(steps):
        solve = run.preconditioner(point)
        direction = -_product(point.gradient, pairs, solve)
        if point.ended is not None:
            direction[-len(point.ended) :].masked_fill_(point.ended, 0.0)
        if _promise(point.gradient, direction) <= run.negligible(point):
            return point, taken
        new, step = _searched(run, point, direction)
        if new is None and pairs:
            pairs = []
            new, step = _searched(run, point, -solve(point.gradient))
        if new is None:
            return point, taken
        change = new.gradient - point.gradient
        same = point.ended is None or new.ended is None or torch.equal(point.ended, new.ended)
        pairs = pairs if same else []
        if same and float(step @ change) > 0:
            pairs = [*pairs, (step, change)][-MEMORY:]
        point = new
    return point, steps


def _searched(run: _Climb, point: _Point, direction: Tensor) -> tuple[_Point | None, Tensor]:
    """The point after the longest step, halved again and again, that lowers the loss; None if none does."""
    step = direction * min(1.0, LONGEST / float(direction.abs().amax()))
    for _ in range(AT_KINKS if run.at_kinks else HALVINGS):
        new = run.moved(point, step)
        if new.loss < point.loss:
            if new.log_freedom is not None and point.log_freedom is not None:  # which may have met a limit
                step = torch.cat([step[: -len(new.shift)], new.log_freedom - point.log_freedom])
            return new, step
        step = step / 2
    return None, step


def _product(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], solve: Callable[[Tensor], Tensor]) -> Tensor:
    """The two-loop recursion of L-BFGS."""
    rest, factors = gradient, []
    for step, change in reversed(pairs):
        factor = (step @ rest) / (step @ change)
        rest = rest - factor * change
        factors.append(factor)
    found = solve(rest)
    for (step, change), factor in zip(pairs, reversed(factors), strict=True):
        found = found + (factor - (change @ found) / (step @ change)) * step
    return found
