"""Inference for any Pyro program."""

import pyro_lvm.infer.missing
import pyro_lvm.infer.student_t  # noqa: F401 - both register closed forms
from pyro_lvm.infer.coordinate_ascent import CoordinateAscent
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.svi import SVI

__all__ = ["EM", "MCMC", "SVI", "CoordinateAscent", "NonFiniteLoss"]
