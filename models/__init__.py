"""Generative programs, one file each."""

from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.student_t_mixture import StudentTMixture

__all__ = ["GaussianMixture", "StudentTMixture"]
