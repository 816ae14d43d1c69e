"""Inference for any Pyro program."""

from pyro_lvm.infer.em import EM

__all__ = ["EM"]
