"""The families with closed-form M-steps, one file for each kind; importing this registers them."""

from pyro_lvm.infer.families import (
    categorical,
    counts,
    multivariate_normal,
    normal,
    positive,
    stick_breaking,
)

__all__ = ["categorical", "counts", "multivariate_normal", "normal", "positive", "stick_breaking"]
