"""A plan from few rows: it is the same for any number of them, and probing costs their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro_lvm.infer.derive import make_plan, refresh, strategy_of
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.plan import Plan
from pyro_lvm.infer.structure import REFUSALS, first_rows

__all__ = ["plan_of_few_rows", "settings_of"]


def plan_of_few_rows(
    program: Callable, max_plate_nesting: int, expectation: Expectation, args: tuple, kwargs: dict[str, Any]
) -> Plan | None:
    """The plan derived from the first rows; None if there are no more, or if they do not tell.

    Args:
        program: Any Pyro program.
        max_plate_nesting: Batch dimensions that plates use.
        expectation: The E-step on all rows.
        args: The program's arguments.
        kwargs: Its keyword arguments.
    """
    few = first_rows(args, kwargs)
    if few is None:
        return None
    try:
        plan = make_plan(expect(program, max_plate_nesting, *few), True)
    except REFUSALS:
        return None
    plan.strategy = strategy_of(expectation)
    unused = [entry for entry in plan if not entry.sites]  # perhaps used by later rows only
    return plan if not unused and refresh(plan, expectation) else None


def settings_of(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Arguments that are no arrays: a selection may follow them."""
    values = [*enumerate(args), *sorted(kwargs.items())]
    return tuple((k, v) for k, v in values if isinstance(v, (bool, int, float, str)))
