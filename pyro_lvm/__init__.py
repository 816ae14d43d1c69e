"""Latent-variable models for Pyro: declare a model, swap the inference, compare the posteriors."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pyro-lvm")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0"

from pyro_lvm import datasets, diagnostics, distributions, evidence, guides, handlers, infer, models
from pyro_lvm.catalog import CATALOG
from pyro_lvm.diagnostics import compare
from pyro_lvm.training import Fit, fit, greedy_pretrain, load

__all__ = [
    "CATALOG",
    "Fit",
    "__version__",
    "compare",
    "datasets",
    "diagnostics",
    "distributions",
    "evidence",
    "fit",
    "greedy_pretrain",
    "guides",
    "handlers",
    "infer",
    "load",
    "models",
]
