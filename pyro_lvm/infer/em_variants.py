"""Which options of EM go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["check_program", "check_variant"]


def check_variant(decay: float | None, acceleration: str | None, annealing: Sequence[float]) -> None:
    """Raise a ValueError unless an option is in its range, and goes with the others."""
    if decay is not None and not 0.5 < decay <= 1:
        raise ValueError(f"EM: expected 0.5 < decay <= 1, or None for full batches; got {decay}.")
    if acceleration not in (None, "squarem"):
        raise ValueError(f"EM: expected acceleration None or 'squarem'; got {acceleration!r}.")
    if acceleration is not None and decay is not None:
        raise ValueError("EM: expected acceleration or decay; got both. Extrapolation needs full batches.")
    if not all(0 < power <= 1 for power in annealing):
        raise ValueError(f"EM: expected inverse temperatures in (0, 1]; got annealing={tuple(annealing)}.")


def check_program(model: Callable | None, exact: bool, annealing: Sequence[float]) -> Callable:
    """The model, if there is one that these options serve.

    Args:
        model: A Pyro program, or None.
        exact: Whether an exact normal posterior is the E-step, the whole of it.
        annealing: As `EM` takes it.

    Raises:
        ValueError: There is no model, or an option does not go with a normal posterior.
    """
    if model is None:
        raise ValueError("EM: expected a model. Pass one: EM(model), or lvm.fit(model, x, inference=EM()).")
    if exact and annealing:
        raise ValueError(
            f"EM: expected no annealing where latent sites are normal; got annealing={tuple(annealing)}. Leave it out."
        )
    return model
