"""Generative programs, one file each."""

from pyro_lvm.models.gaussian_mixture import GaussianMixture

__all__ = ["GaussianMixture"]
