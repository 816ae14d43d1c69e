"""Generative programs, one file each."""

from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.mixture_of_experts import MixtureOfExperts

__all__ = ["GaussianMixture", "MixtureOfExperts"]
