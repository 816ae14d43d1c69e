"""Estimators of gradients through discrete latents, one file each: objectives that any `pyro.infer.SVI` takes."""

from pyro_lvm.infer.estimators.leave_one_out import LeaveOneOut
from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO
from pyro_lvm.infer.estimators.nvil import NVIL
from pyro_lvm.infer.estimators.relax import RELAX
from pyro_lvm.infer.estimators.vimco import VIMCO

__all__ = ["NVIL", "RELAX", "VIMCO", "Draws", "LeaveOneOut", "MultiSampleELBO"]
