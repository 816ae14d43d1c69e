"""Guides as ordinary Pyro programs, one file each."""

from pyro_lvm.guides.conjugate import Conjugate
from pyro_lvm.guides.map import MAP
from pyro_lvm.guides.multivariate_normal import AutoMultivariateNormal
from pyro_lvm.guides.normal import AutoNormal

__all__ = ["MAP", "AutoMultivariateNormal", "AutoNormal", "Conjugate"]
