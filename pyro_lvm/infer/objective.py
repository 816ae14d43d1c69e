"""Objectives that people pass: objects with a loss and its gradients, or one sentence."""

from __future__ import annotations

from typing import Any

from pyro_lvm.protocols import Objective

__all__ = ["check_objective"]


def check_objective(caller: str, name: str, value: Any) -> None:
    """Raise unless a loss can be computed by an object, if there is one.

    Args:
        caller: Who asks, for the message.
        name: Name of the argument, for the message.
        value: What was passed; None leaves the choice to the caller.

    Raises:
        TypeError: It is no `Objective`, as a name or a class is none.
    """
    if value is None or (isinstance(value, Objective) and not isinstance(value, type)):
        return
    got, hint = repr(value), "Pass an object, as lvm.infer.WakeSleep() or pyro.infer.Trace_ELBO()."
    if isinstance(value, type):
        got, hint = f"the class {value.__name__}", f"Make one: {value.__name__}(...)."
    raise TypeError(f"{caller}: expected {name} to be an objective with loss and loss_and_grads; got {got}. {hint}")
