r"""Log-likelihood of rows with discrete sites summed out exactly.

A point fit gives :math:`\log p(x_n \mid \hat\theta)`. A posterior gives the log predictive density
:math:`\log \frac1S \sum_s p(x_n \mid \theta_s)` over its draws.

References:
    A. Vehtari, A. Gelman, J. Gabry (2017), Practical Bayesian model evaluation, Statistics and Computing 27, eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.psis import LEAST
from pyro_lvm.infer.by_row import row_log_likelihood
from pyro_lvm.infer.structure import plate_nesting
from pyro_lvm.ops.threads import fitting_threads

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["Evidence", "concatenate", "log_likelihood", "nesting", "pointwise"]


@dataclass(frozen=True)
class Evidence:
    """Log-likelihood by row.

    Attributes:
        values: Nats, shape (n,).
        standard_error: Monte Carlo standard error of each value, nats, shape (n,); zero where exact.
        estimator: What was computed.
        weights: How many rows each row counts for, shape (n,).
        shared_error: The part of the standard error that is one error, the same in all rows, nats: that of an estimated
            normalizer. Over n rows it adds up to n times as much, other errors only to the root of n times as much.
        pareto_k: Shape of the tail of each row's importance weights, (n,), where there are some: above 0.7 the row's
            value and its error are not to be trusted. NaN where it cannot be told, as of fewer than 25 samples.
    """

    values: Tensor
    standard_error: Tensor
    estimator: str
    weights: Tensor
    shared_error: float = 0.0
    pareto_k: Tensor | None = None

    def __repr__(self) -> str:
        if not self.num_rows:
            return f"Evidence(no rows; {self.estimator})"
        said = f"Evidence({self.total:.4f} nats over {self.num_rows:g} rows, {self.total / self.num_rows:.4f} a row"
        simulation = self.simulation_error_of_total
        if len(self.values) > 1:
            said += f", standard error {self.error_of_total:.3g} over rows"
        if simulation > 0:  # of one sample it is not known: NaN
            said += f", {simulation:.3g} of simulation"
        return f"{said};\n         {self.how})"

    @property
    def how(self) -> str:
        """The estimator, and what the tails of importance weights say of it, in words."""
        if self.pareto_k is None:
            return self.estimator
        known = self.pareto_k[~self.pareto_k.isnan()]
        if len(known):
            return f"{self.estimator}, largest Pareto k-hat {float(known.max()):.2f}"
        return f"{self.estimator}, too few to tell by a Pareto k-hat whether they can be trusted: {LEAST} are needed"

    @property
    def num_rows(self) -> float:
        """The number of rows, each counted as often as its weight says."""
        return float(self.weights.double().sum())

    @property
    def total(self) -> float:
        """Log-likelihood of all rows, nats."""
        values, weights = self._counted()
        return float((values * weights).sum())

    @property
    def error_of_total(self) -> float:
        """Standard error of the total, nats: how it would vary with other rows of the same source, and other chains.

        What differs from row to row, Monte Carlo errors too, is seen in the spread of the values; an error that all
        rows share is not, and is added. Of a single row it is not known: NaN.
        """
        values, weights = self._counted()
        if len(values) == 1:
            return math.nan
        mean = (values * weights).sum() / weights.sum()
        spread = (weights * (values - mean) ** 2).sum()
        return math.sqrt(float(spread) + (float(weights.sum()) * self.shared_error) ** 2)

    @property
    def simulation_error_of_total(self) -> float:
        """Monte Carlo standard error of the total of just these rows, nats; zero where exact."""
        weights = self.weights.double()
        own = self.standard_error.double().square() - self.shared_error**2
        shared = (float(weights.sum()) * self.shared_error) ** 2
        return math.sqrt(float((weights.square() * own.clamp_min(0)).sum()) + shared)

    def minus(self, other: Evidence) -> Evidence:
        """The difference from another model's evidence on the same rows; its own errors cancel out."""
        same = other is self
        errors = self.standard_error.double().square() + other.standard_error.double().square().to(self.values.device)
        return replace(
            self,
            values=self.values.double() - other.values.double().to(self.values.device),
            standard_error=torch.zeros_like(errors) if same else errors.sqrt(),
            shared_error=0.0 if same else math.hypot(self.shared_error, other.shared_error),
            pareto_k=None,
        )

    def _counted(self) -> tuple[Tensor, Tensor]:
        """Values and weights of the rows that count: one that does not may be impossible."""
        counted = self.weights > 0
        return self.values[counted].double(), self.weights[counted].double()


def concatenate(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of all rows from that of batches of them."""
    return Evidence(
        torch.cat([part.values for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        parts[0].estimator,
        torch.cat([part.weights for part in parts]),
        max(part.shared_error for part in parts),
        torch.cat(shapes) if (shapes := [part.pareto_k for part in parts if part.pareto_k is not None]) else None,
    )


def pointwise(fit: Fit, arguments: Arguments) -> Tensor:
    """Log-likelihood of every row under every draw.

    Args:
        fit: A fit.
        arguments: Converted data.

    Returns:
        Nats, shape (chains, draws, n).
    """
    from pyro_lvm.diagnostics.paths import log_likelihoods
    from pyro_lvm.evidence.normalizers import known_normalizers

    draws = fit.draws if fit.latent else {}
    flat = [{name: v.flatten(0, 1)[i] for name, v in draws.items()} for i in range(_count(draws))]
    table = log_likelihoods(fit, arguments, flat) if len(flat) > 1 else None
    if table is not None:
        return table.reshape(*next(iter(draws.values())).shape[:2], -1)
    model = fit.program
    threads = fitting_threads(arguments.main.numel())
    with fit.scope(), known_normalizers(fit), _pyro.validation(False), threads:
        depth = nesting(fit, arguments)
        shape = next(iter(draws.values())).shape[:2] if draws else (1, 1)
        rows = [
            row_log_likelihood(
                model,
                depth,
                arguments.args,
                arguments.kwargs,
                given={name: values[chain, draw] for name, values in draws.items()},
                plate=fit.plate,
            )
            for chain in range(shape[0])
            for draw in range(shape[1])
        ]
    return torch.stack(rows).reshape(*shape, -1)


def _count(draws: dict[str, Tensor]) -> int:
    return next(iter(draws.values())).shape[:2].numel() if draws else 1


def nesting(fit: Fit, arguments: Arguments) -> int:
    """Batch dimensions that the model's plates use."""
    return plate_nesting(fit.program, arguments.args, arguments.kwargs)


def log_likelihood(fit: Fit, arguments: Arguments, num_samples: int | None = None) -> Evidence:
    """Log-likelihood by row: averaged over the fit's draws, or importance weighted if the guide draws sites of rows.

    The normalizer of an undirected site too large to be summed up is estimated once by annealed importance sampling.
    Its error is the same for all rows, as `Evidence.shared_error` says.

    Args:
        fit: A fit.
        arguments: Converted data.
        num_samples: Samples of each row, where it is importance weighted.

    Returns:
        Values in nats, their Monte Carlo errors, and the name of the estimator.
    """
    from pyro_lvm.evidence.normalizers import known_normalizers

    with known_normalizers(fit) as normalizers:
        found = _log_likelihood(fit, arguments, num_samples)
    for name, normalizer in normalizers.items():
        error = found.standard_error.double().square() + normalizer.standard_error**2
        found = replace(
            found,
            standard_error=error.sqrt().to(found.standard_error),
            shared_error=math.hypot(found.shared_error, normalizer.standard_error),
            estimator=f"{found.estimator.removeprefix('exact ')}, normalizer of '{name}' by {normalizer.estimator}",
        )
    return found


def _log_likelihood(fit: Fit, arguments: Arguments, num_samples: int | None) -> Evidence:
    from pyro_lvm.training.guide_draws import draws_rows

    exact_guide: Any = fit.guide if hasattr(fit.guide, "row_log_likelihood") else None
    if exact_guide is not None:
        with fit.scope(), _pyro.validation(False), torch.no_grad(), fitting_threads(arguments.main.numel()):
            values = exact_guide.row_log_likelihood(*arguments.args, **arguments.kwargs)
        return Evidence(values, torch.zeros_like(values), "exact log-likelihood at a point", arguments.weights)
    if draws_rows(fit):
        from pyro_lvm.evidence.importance import NUM_SAMPLES, importance_weighted

        return importance_weighted(fit, arguments, NUM_SAMPLES if num_samples is None else num_samples)
    table = pointwise(fit, arguments).flatten(0, 1)
    count = len(table)
    if count == 1:
        exact = torch.zeros_like(table[0])
        return Evidence(table[0], exact, "exact log-likelihood at a point", arguments.weights)
    values = table.logsumexp(0) - math.log(count)
    ratio = (table - values).exp()  # relative weights, mean one
    error = ratio.std(0) / math.sqrt(count)
    return Evidence(values, error, f"log predictive density over {count} draws", arguments.weights)
