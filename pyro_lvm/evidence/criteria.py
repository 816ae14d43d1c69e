"""Information criteria of point fits: log-likelihood against the number of parameters.

References:
    H. Akaike (1974), A new look at the statistical model identification, IEEE Transactions on Automatic Control 19.
    G. Schwarz (1978), Estimating the dimension of a model, Annals of Statistics 6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch.distributions import constraints

from pyro_lvm.infer.parameters import Parameter

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["aic", "bic"]


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
        x: Rows; with `sample_weights` their number is the sum of the weights.

    Raises:
        ValueError: The fit is a posterior.
    """
    free, evidence = _free_parameters(fit, "bic"), fit.evidence(x)
    return free * math.log(evidence.num_rows) - 2 * evidence.total


def _free_parameters(fit: Fit, name: str) -> int:
    if fit.latent:
        raise ValueError(f"{name}: expected a point fit, got a posterior. Use lvm.compare instead.")
    return sum(_degrees_of_freedom(p) for p in fit.parameters().values())


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
