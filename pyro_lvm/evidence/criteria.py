"""Information criteria of point fits: log-likelihood against the number of parameters.

References:
    H. Akaike (1974), A new look at the statistical model identification, IEEE Transactions on Automatic Control 19.
    G. Schwarz (1978), Estimating the dimension of a model, Annals of Statistics 6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import constraints

from pyro_lvm import _pyro
from pyro_lvm.infer.m_step import innermost
from pyro_lvm.infer.parameters import Parameter
from pyro_lvm.infer.structure import structure
from pyro_lvm.training.stream import as_stream

if TYPE_CHECKING:
    from pyro_lvm.training.data import Arguments
    from pyro_lvm.training.result import Fit

__all__ = ["aic", "bic", "num_observations"]


def aic(fit: Fit, x: Any) -> float:
    """Twice the number of free parameters minus twice the log-likelihood in nats.

    Args:
        fit: A point fit.
        x: Rows.

    Raises:
        ValueError: The fit is a posterior.
    """
    return 2 * _free_parameters(fit, "aic") - 2 * fit.evidence(x).total


def bic(fit: Fit, x: Any) -> float:
    """The number of free parameters times the logarithm of the number of rows, minus twice the log-likelihood.

    Args:
        fit: A point fit.
        x: Rows; with `sample_weights` their number is the sum of the weights. Of sequences, the steps that were
            observed are counted.

    Raises:
        ValueError: The fit is a posterior.
    """
    free, evidence = _free_parameters(fit, "bic"), fit.evidence(x)
    return free * math.log(num_observations(fit, x)) - 2 * evidence.total


def num_observations(fit: Fit, x: Any) -> float:
    """The number of rows, each as often as its weight says; of sequences, that of the steps that were observed.

    Args:
        fit: A fit.
        x: Rows, or a stream of batches.
    """
    stream = as_stream(x)
    batches = [x] if stream is None else stream.through(fit.arguments).batches()
    return sum(_observations(fit, fit.arguments(batch)) for batch in batches)


def _observations(fit: Fit, arguments: Arguments) -> float:
    weights = arguments.weights.double()
    with fit.scope(), _pyro.validation(False):
        few = structure(fit.program, arguments.args, arguments.kwargs, fresh=False)
        if not _laws_of_sequences(few):
            return float(weights.sum())
        with torch.random.fork_rng(), torch.no_grad():
            trace = _pyro.plain_trace(fit.program, arguments.args, arguments.kwargs)
    return sum(float((weights * law.num_observed(value)).sum()) for law, value in _laws_of_sequences(trace))


def _laws_of_sequences(trace: Any) -> list[tuple[Any, Any]]:
    """The laws that know how many steps of their values are observed, and these values."""
    found = [(innermost(site["fn"]), site["value"]) for site in trace.nodes.values() if site["type"] == "sample"]
    return [(law, value) for law, value in found if hasattr(law, "num_observed")]


def _free_parameters(fit: Fit, name: str) -> int:
    if fit.latent:
        raise ValueError(f"{name}: expected a point fit, got a posterior. Use lvm.compare instead.")
    fixed = getattr(fit.model, "fixed_entries", lambda _: 0)
    return sum(_degrees_of_freedom(p) - fixed(name) for name, p in fit.parameters(guide=False).items())


def _degrees_of_freedom(parameter: Parameter) -> int:
    if parameter.constraint is constraints.simplex:
        return parameter.value.numel() - parameter.value.numel() // parameter.value.shape[-1]
    if parameter.constraint is constraints.positive_definite:
        d = parameter.value.shape[-1]
        return parameter.value.numel() // d**2 * (d * (d + 1) // 2)
    if parameter.constraint is constraints.lower_cholesky:
        d = parameter.value.shape[-1]
        return parameter.value.numel() // d**2 * (d * (d + 1) // 2)
    return parameter.value.numel()
