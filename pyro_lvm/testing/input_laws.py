"""Laws of bad input."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm import training
from pyro_lvm.testing.checks import require

__all__ = ["BAD_ROWS", "BAD_SEQUENCES", "rejects_bad_rows"]


def _spoil(rows: Tensor, value: float) -> Tensor:
    bad = rows.clone()
    bad[len(bad) // 2, ..., 0] = value
    return bad


def _constant(rows: Tensor) -> Tensor:
    bad = rows.clone()
    bad[..., 0] = 3.0
    return bad


Spoiled = Mapping[str, tuple[Callable[[Tensor], Any], str, str]]

EVERYWHERE: Spoiled = {
    "NaN": (lambda rows: _spoil(rows, math.nan), "both", r"NaN|missing"),
    "infinite": (lambda rows: _spoil(rows, math.inf), "both", r"infinite"),
    "minus infinite": (lambda rows: _spoil(rows, -math.inf), "both", r"infinite"),
    "no rows": (lambda rows: rows[:0], "both", r"at least (one|1) row|empty"),
    "empty list": (lambda rows: [], "both", r"at least (one|1) row|empty"),
    "text": (lambda rows: [["a", "b"], ["c", "d"]], "both", r"number|text"),
    "None inside": (lambda rows: [[None, 1.0], [2.0, 3.0]], "both", r"number|NoneType"),
    "a scalar": (lambda rows: 3.0, "both", r"at least (one|1) row|shape"),
    "complex": (lambda rows: rows.to(torch.complex128), "both", r"real|number|complex"),
    "too many columns": (lambda rows: torch.cat([rows, rows[..., :1]], -1), "score", r"shape|column"),
    "constant column": (_constant, "fit", r"constant"),
}
BAD_ROWS: Spoiled = {
    "1-d": (lambda rows: rows[:, 0], "both", r"shape"),
    "3-d": (lambda rows: rows.unsqueeze(1), "both", r"shape"),
    **EVERYWHERE,
    "one row": (lambda rows: rows[:1], "fit", r"row"),
    "too few rows": (lambda rows: rows[:2], "components", r"rows? as components|num_components"),
}
"""Rubbish by name: how to make it from good rows (n, d); at which door it must be turned away ("fit", "score", "both",
or "components": at "fit", by a model of three components or states); and what the message must mention."""

BAD_SEQUENCES: Spoiled = {
    **EVERYWHERE,
    "4-d": (lambda rows: rows.unsqueeze(1), "both", r"shape"),
    "no steps": (lambda rows: rows[:, :0], "both", r"at least (one|1) (row|step)|empty|shape"),
    "a sequence without steps": (lambda rows: _with_lengths(rows, 0), "both", r"length|empty"),
    "a sequence longer than the data": (lambda rows: _with_lengths(rows, rows.shape[1] + 1), "both", r"length"),
    "half a step": (lambda rows: _with_lengths(rows, 1.5), "both", r"whole|integer"),
    "lengths of others": (lambda rows: {"x": rows, "lengths": torch.ones(len(rows) + 1).long()}, "both", r"length"),
    "too few steps": (lambda rows: rows[:1, :2], "components", r"num_states"),
}
"""The same for models of sequences, from good ones of shape (n, T, d)."""


def _with_lengths(rows: Tensor, first: float) -> dict[str, Tensor]:
    return {"x": rows, "lengths": torch.tensor([first, *[rows.shape[1]] * (len(rows) - 1)])}


def rejects_bad_rows(
    make_model: Callable[..., Callable], rows: Float[Tensor, " n *d"], *, skip: tuple[str, ...] = (), **options: Any
) -> None:
    """Rubbish is turned away with a ValueError (TypeError for a wrong kind) of one line that names the problem.

    Every kind in `BAD_ROWS`, or in `BAD_SEQUENCES` for a model of sequences, is tried on `lvm.fit`, and on `fit.score`
    of a model fitted to the good rows. NaN is no rubbish to a model with `handles_missing`.

    Args:
        make_model: Makes a new model; with `num_components=` or `num_states=` if it has components or states.
        rows: Good rows, shape (n, d), or sequences, shape (n, T, d).
        skip: Kinds that are no rubbish to this model (NaN is none to a model that handles missing entries).
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Rubbish was accepted, raised something else, or the message is not a sentence about it.
    """
    options = {"seed": 0, "max_epochs": 2, "progress": False, **options}
    good = training.fit(make_model(), rows, **options)
    of_sequences = getattr(good.model, "sequences", False)
    count = "num_states" if of_sequences else "num_components"
    skip = (*skip, "NaN") if getattr(good.model, "handles_missing", False) else skip
    for kind, (spoil, doors, pattern) in (BAD_SEQUENCES if of_sequences else BAD_ROWS).items():
        if kind in skip or (doors == "components" and not hasattr(good.model, count)):
            continue
        bad = spoil(rows)
        if doors in ("fit", "both"):
            _rejects(f"fit of {kind}", pattern, functools.partial(training.fit, make_model(), bad, **options))
        if doors == "components":
            model = make_model(**{count: 3})
            _rejects(f"fit of {kind}", pattern, functools.partial(training.fit, model, bad, **options))
        if doors in ("score", "both"):
            _rejects(f"score of {kind}", pattern, functools.partial(good.score, bad))


def _rejects(what: str, pattern: str, attempt: Callable[[], Any]) -> None:
    try:
        attempt()
    except (ValueError, TypeError) as error:
        text = str(error)
    except Exception as error:
        raise AssertionError(f"rejects_bad_rows: {what} raised {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"rejects_bad_rows: {what} was accepted.")
    require(
        "\n" not in text and text.endswith(".") and len(text) <= 400,
        f"rejects_bad_rows: {what} gave a message that is not a sentence: {text!r}",
    )
    require(
        re.search(pattern, text) is not None,
        f"rejects_bad_rows: {what} gave a message that does not mention {pattern!r}: {text!r}",
    )


# Parts
