"""How probable are rows under a fit? One answer per kind of fit, each naming its estimator."""

from pyro_lvm.evidence.ais import (
    LogNormalizer,
    annealed_importance_sampling,
    reverse_annealed_importance_sampling,
)
from pyro_lvm.evidence.exact import Evidence, concatenate, log_likelihood, pointwise

__all__ = [
    "Evidence",
    "LogNormalizer",
    "annealed_importance_sampling",
    "concatenate",
    "log_likelihood",
    "pointwise",
    "reverse_annealed_importance_sampling",
]
