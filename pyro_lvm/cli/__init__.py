"""The command line. A user's mistake ends with status 2 and one line, never with a traceback."""

from pyro_lvm.cli.app import app, main
from pyro_lvm.cli.looking import compare, criteria, loadings, plan, plot, score, summary
from pyro_lvm.cli.rows import forecast, impute, predict, reconstruct, sample, transform
from pyro_lvm.cli.training import demo, fit, list_models, resume

__all__ = [
    "app",
    "compare",
    "criteria",
    "demo",
    "fit",
    "forecast",
    "impute",
    "list_models",
    "loadings",
    "main",
    "plan",
    "plot",
    "predict",
    "reconstruct",
    "resume",
    "sample",
    "score",
    "summary",
    "transform",
]
