"""States that are left without rows."""

from __future__ import annotations

import warnings

from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.plan import Plan

__all__ = ["report_lost"]

# A state with a smaller share of the rows is empty.
LOST = 1e-12


def report_lost(expectation: Expectation, plan: Plan, known: set[tuple[str, int]]) -> None:
    """Say once that a state is left without rows: its probability is zero from then on, unless a prior keeps it up.

    Args:
        expectation: The E-step.
        plan: The M-step of every parameter.
        known: Sites and states that were reported before; added to.
    """
    kept = {use.site for entry in plan.closed if entry.priors for use in entry.uses}
    for site, total in expectation.totals.items():
        if site in kept:
            continue
        for state in (total < LOST * total.sum()).nonzero().flatten().tolist():
            if (site, state) not in known:
                known.add((site, state))
                warnings.warn(
                    f"EM: '{site}' has no rows left in state {state}; that is left out from here on and its other "
                    "parameters stay as they are. Use fewer states, other starts (restarts=) or a prior.",
                    RuntimeWarning,
                    stacklevel=5,
                )
