"""Training: the front door, its result, and fits on disk."""

from pyro_lvm.training.checkpoint import load
from pyro_lvm.training.fit import fit
from pyro_lvm.training.greedy_pretrain import greedy_pretrain
from pyro_lvm.training.result import Fit

__all__ = ["Fit", "fit", "greedy_pretrain", "load"]
