"""Structured distributions."""

from pyro_lvm.distributions.inverse_wishart import InverseWishart

__all__ = ["InverseWishart"]
