"""Inference for any Pyro program."""

import pyro_lvm.infer.missing
import pyro_lvm.infer.student_t  # noqa: F401 - both register closed forms
from pyro_lvm.infer.contrastive_divergence import ContrastiveDivergence
from pyro_lvm.infer.coordinate_ascent import CoordinateAscent
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.estimators import NVIL, RELAX, VIMCO, LeaveOneOut, MultiSampleELBO
from pyro_lvm.infer.evidence_bound import EvidenceBound
from pyro_lvm.infer.importance_weighted import ImportanceWeighted
from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.infer.svi import SVI
from pyro_lvm.infer.wake_sleep import WakeSleep

__all__ = [
    "EM",
    "MCMC",
    "NVIL",
    "RELAX",
    "SVI",
    "VIMCO",
    "ContrastiveDivergence",
    "CoordinateAscent",
    "EvidenceBound",
    "ImportanceWeighted",
    "LeaveOneOut",
    "MultiSampleELBO",
    "NonFiniteLoss",
    "WakeSleep",
]
