"""Looking at fits: ArviZ data, comparison tables, aligned labels, pictures."""

from pyro_lvm.diagnostics.accuracy import many_to_one
from pyro_lvm.diagnostics.alignment import alignment_error_rate, alignment_scores, symmetrise
from pyro_lvm.diagnostics.arviz import to_arviz
from pyro_lvm.diagnostics.compare import compare
from pyro_lvm.diagnostics.loadings import explained_variance, loadings
from pyro_lvm.diagnostics.psis import pareto_k
from pyro_lvm.diagnostics.table import Table

__all__ = [
    "Table",
    "alignment_error_rate",
    "alignment_scores",
    "compare",
    "explained_variance",
    "loadings",
    "many_to_one",
    "pareto_k",
    "symmetrise",
    "to_arviz",
]
