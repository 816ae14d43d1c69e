r"""Statistics averaged over batches: stepwise EM.

After batch t with expected statistics :math:`s_t`, the M-step uses

.. math:: S_t = (1 - \gamma_t) S_{t-1} + \gamma_t s_t, \qquad \gamma_t = (t + 1)^{-\kappa}, \quad \gamma_0 = 1

which converges for :math:`1/2 < \kappa \le 1`; memory does not depend on the number of rows. Where something stands
for a batch before the first, :math:`\gamma_0 = 2^{-\kappa}`.

References:
    O. Cappé, E. Moulines (2009), On-line expectation-maximization for latent data models, JRSS B 71(3), eq. 9 and 17.
    P. Liang, D. Klein (2009), Online EM for unsupervised models, NAACL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import Statistics, closed_form, innermost
from pyro_lvm.infer.plan import Plan

__all__ = ["Averages", "keep_averages"]

NOTHING = 1e-30  # rows: batches of which none counts leave about as much


class Averages:
    """Running averages of the statistics of every site.

    Args:
        decay: The exponent kappa.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.sites: dict[str, Statistics] = {}

    @property
    def rate(self) -> float:
        """The weight of the present batch."""
        return float((self.count + 1) ** -self.decay)

    def blend(self, site: str, statistics: Statistics, start: Statistics | None = None) -> Statistics:
        """A site's statistics on the present batch, averaged with those before; nothing is kept.

        Args:
            site: Its name.
            statistics: On the present batch.
            start: What stands for a batch before the first, where the present one alone would tell too little.
        """
        old, rate = self.sites.get(site), self.rate
        if start is not None and (old is None or bool((old["total"] <= NOTHING).all())):
            old, rate = start, float(2**-self.decay)
        if old is not None and old.cells == statistics.cells:
            statistics = _about_the_same(old, statistics)
            blended = {
                name: new if name in Statistics.CONSTANT else torch.lerp(old[name].to(new), new, rate)
                for name, new in statistics.items()
            }
            statistics = Statistics(statistics.cells, **blended)
        return statistics

    def update(self, site: str, statistics: Statistics) -> Statistics:
        """Blend a site's statistics on the present batch into its average."""
        found = self.sites[site] = self.blend(site, statistics)
        return found

    def advance(self, kept: Mapping[str, Statistics]) -> None:
        """End a batch, of which these averages are kept as well."""
        self.sites.update(kept)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        sites = {name: {"cells": list(s.cells), **dict(s)} for name, s in self.sites.items()}
        return {"count": self.count, "sites": sites}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.count = state["count"]
        self.sites = {
            name: Statistics(torch.Size(saved["cells"]), **{k: v for k, v in saved.items() if k != "cells"})
            for name, saved in state["sites"].items()
        }


def _about_the_same(old: Statistics, new: Statistics) -> Statistics:
    """New moments about the centre of the old ones: rows with gaps or of a t law bring one with every batch."""
    if "centre" not in old or torch.equal(old["centre"], new["centre"]):
        return new
    change, total, first = new["centre"] - old["centre"], new["total"], new["centred_sum"]
    if first.dim() > total.dim():  # moments of vectors
        cross = first.unsqueeze(-1) * change.unsqueeze(-2)
        outer = total[..., None, None] * change.unsqueeze(-1) * change.unsqueeze(-2)
        first, square = first + total.unsqueeze(-1) * change, new["square"] + cross + cross.mT + outer
    else:
        square = new["square"] + 2 * change * first + total * change.square()
        first = first + total * change
    return Statistics(new.cells, **{**new, "centre": old["centre"], "centred_sum": first, "square": square})


def keep_averages(plan: Plan, expectation: Expectation) -> None:
    """Leave to gradients what averages over batches cannot hold, as statistics of single rows."""
    for entry in plan.closed:
        by_row = [use.site for use in entry.uses if _differs_by_row(expectation.factors[use.site])]
        if entry.regression is not None:
            plan.demote(entry.name, "least squares needs all rows at once (decay=None)")
        elif by_row:
            reason = f"the parameters of {by_row[0]} differ from row to row, which needs all rows (decay=None)"
            plan.demote(entry.name, reason)
        elif not all(use.form.additive for use in entry.uses):
            plan.demote(entry.name, "its statistics cannot be averaged over batches")


def _differs_by_row(factor: Factor) -> bool:
    """Whether some argument of a site has an entry of its own for every index of a plate."""
    fn = innermost(factor.fn)
    form, inner = closed_form(fn), len(fn.batch_shape) - len(factor.fn.batch_shape)
    plates = [f.dim - inner for f in factor.site["cond_indep_stack"] if f.vectorized]
    for argument in form.arguments if form else ():
        value = argument.read(fn)
        batch = value.shape[: value.dim() - argument.event_dim]
        if any(dim >= -len(batch) and batch[dim] > 1 for dim in plates):
            return True
    return False
