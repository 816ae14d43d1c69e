"""Structured distributions."""

from pyro_lvm.distributions.inverse_wishart import InverseWishart
from pyro_lvm.distributions.partial_multivariate_normal import PartialMultivariateNormal

__all__ = ["InverseWishart", "PartialMultivariateNormal"]
