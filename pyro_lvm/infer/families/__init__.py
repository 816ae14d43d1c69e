"""The families with closed-form M-steps, one file for each kind; importing this registers them."""

from pyro_lvm.infer.families import (
    categorical,
    counts,
    delta,
    dirichlet,
    gamma,
    laplace,
    low_rank,
    multivariate_normal,
    negative_binomial,
    normal,
    positive,
    stick_breaking,
    von_mises,
)

__all__ = [
    "categorical",
    "counts",
    "delta",
    "dirichlet",
    "gamma",
    "laplace",
    "low_rank",
    "multivariate_normal",
    "negative_binomial",
    "normal",
    "positive",
    "stick_breaking",
    "von_mises",
]
