"""How probable are rows under a fit? One answer per kind of fit, each naming its estimator."""

from pyro_lvm.evidence.exact import Evidence, concatenate, log_likelihood, pointwise

__all__ = ["Evidence", "concatenate", "log_likelihood", "pointwise"]
