"""How probable are rows under a fit? One answer per kind of fit, each naming its estimator."""

from pyro_lvm.evidence.exact import Evidence, log_likelihood, pointwise

__all__ = ["Evidence", "log_likelihood", "pointwise"]
