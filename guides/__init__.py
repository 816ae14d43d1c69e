"""Guides as ordinary Pyro programs, one file each."""

from pyro_lvm.guides.amortized_gaussian import AmortizedGaussian
from pyro_lvm.guides.conjugate import Conjugate
from pyro_lvm.guides.exact_gaussian import ExactGaussian
from pyro_lvm.guides.inverse_autoregressive import InverseAutoregressive
from pyro_lvm.guides.local_gaussian import LocalGaussian
from pyro_lvm.guides.map import MAP
from pyro_lvm.guides.multivariate_normal import AutoMultivariateNormal
from pyro_lvm.guides.normal import AutoNormal
from pyro_lvm.guides.recognition_net import RecognitionNet
from pyro_lvm.guides.semi_amortized import SemiAmortized
from pyro_lvm.guides.sparse_codes import SparseCodes

__all__ = [
    "MAP",
    "AmortizedGaussian",
    "AutoMultivariateNormal",
    "AutoNormal",
    "Conjugate",
    "ExactGaussian",
    "InverseAutoregressive",
    "LocalGaussian",
    "RecognitionNet",
    "SemiAmortized",
    "SparseCodes",
]
