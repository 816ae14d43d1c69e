"""Which fit predicts best? One table, every row computed in the same way, and the way is named."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_lvm.diagnostics.table import Table
from pyro_lvm.evidence import Evidence
from pyro_lvm.training.fingerprint import row_hashes, share_seen

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["compare"]

HELD_OUT, RECURRING, IN_SAMPLE = "held-out rows", "rows that recur in the training data", "in-sample"


def compare(fits: Mapping[str, Fit], x: Any) -> Table:
    """Rank fits by their expected log predictive density on rows `x`.

    Rows held out from all fits give an honest estimate. Rows that a fit was trained on do not: then every fit is
    scored in-sample alike, the table says so, and a warning too.

    Args:
        fits: Fits by name, of any models, guides and inferences.
        x: Rows, converted as in `lvm.fit`; the same for all. With `sample_weights` a row counts as so many.

    Returns:
        Best first. `elpd` is the summed log predictive density of the rows in nats and `se` its standard error over
        rows and, where a normalizer was estimated, over that; `elpd_diff` and `dse` are the difference from the best
        and its standard error; `per_row` is the mean; `rows_seen` is the share of rows that the fit was trained on;
        `estimator` says what was computed.

    Raises:
        TypeError: Something is not a fit, or the fits have no names.
        ValueError: There is nothing to compare.

    References:
        A. Vehtari, A. Gelman, J. Gabry (2017), Practical Bayesian model evaluation, equations 3 and 24.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> one, two = (lvm.fit(lvm.models.GaussianMixture(k), x[::2], seed=0, progress=False) for k in (1, 2))
        >>> lvm.compare({"one": one, "two": two}, x[1::2]).index[0]
        'two'
    """
    from pyro_lvm.training.result import Fit

    if not isinstance(fits, Mapping):
        raise TypeError(f'compare: expected a dict of fits, {{"name": fit, ...}}; got {type(fits).__name__}.')
    if not fits:
        raise ValueError("compare: expected at least one fit; got none.")
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise TypeError(
                f"compare: expected '{name}' to be a fit, from lvm.fit or lvm.load; got {type(fit).__name__}."
            )
    rows: list[dict[str, Any]] = []
    evidence: dict[str, Evidence] = {}
    provenance: set[str] = set()
    trained: list[str] = []
    for name, fit in fits.items():
        arguments = fit.arguments(x)
        own = evidence[name] = fit.evidence(arguments)
        seen, whose = _provenance(fit, row_hashes(arguments.unpadded))
        provenance.add(whose)
        if whose == IN_SAMPLE:
            trained.append(str(name))
        rows.append({"name": name, "elpd": own.total, "rows_seen": seen, "estimator": own.estimator})
    lengths = {len(own.values) for own in evidence.values()}
    if len(lengths) > 1:
        raise ValueError(f"compare: expected all fits to score the same rows; got {sorted(lengths)} rows.")
    best = max(rows, key=lambda row: row["elpd"])["name"]
    worst = max(provenance, key=[HELD_OUT, RECURRING, IN_SAMPLE].index)
    for row in rows:
        own = evidence[row["name"]]
        difference = own.minus(evidence[best])
        row["se"] = own.error_of_total
        row["elpd_diff"] = difference.total
        row["dse"] = difference.error_of_total
        row["per_row"] = own.total / own.num_rows
        row["estimator"] += f", {worst}"
    if trained:
        verb = "were" if len(trained) > 1 else "was"
        warnings.warn(
            f"compare: {', '.join(trained)} {verb} trained on these rows, so all scores are in-sample and favour "
            "flexible models. Pass rows held out from training.",
            UserWarning,
            stacklevel=2,
        )
    order = ["elpd", "se", "elpd_diff", "dse", "per_row", "rows_seen", "estimator"]
    return Table(rows).set_index("name").sort_values("elpd", ascending=False)[order]


def _provenance(fit: Fit, hashes: Tensor) -> tuple[float, str]:
    """The share of rows that occur in a fit's training data, and what follows from it.

    Where rows repeat a lot (counts, short binary rows), new ones equal old ones by chance: then only the whole training
    set is recognised for certain.
    """
    if not len(fit.seen):
        return 0.0, HELD_OUT
    seen = share_seen(fit.seen, hashes)
    distinct = len(torch.unique(hashes)) / len(hashes)
    if int(hashes.sum()) in fit.trained_on or (seen > 0.5 and distinct > 0.5):
        return seen, IN_SAMPLE
    return seen, RECURRING if seen > 0.5 else HELD_OUT
