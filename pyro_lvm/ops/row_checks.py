"""What rows must look like, said in one sentence where they do not."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["check_binary", "check_matrix", "check_sequences", "check_weights"]


def check_matrix(
    owner: str,
    x: Tensor,
    columns: int | None,
    argument: str = "data_dim",
    advice: Callable[[int], str] | None = None,
) -> None:
    """Raise a ValueError unless `x` is a matrix with the right number of columns.

    Args:
        owner: Who asks.
        x: Rows.
        columns: How many columns there must be; None for any.
        argument: What of `owner` says how many.
        advice: What to do with another number of columns, by that number; else to pass it as `argument`.
    """
    shape = tuple(x.shape)
    if len(shape) == 2 and columns in (None, shape[1]):
        return
    hint = "Reshape it to a matrix, one row per observation: x.reshape(len(x), -1)."
    if len(shape) == 2:
        hint = advice(shape[1]) if advice else f"Pass {argument}={shape[1]}, or give {columns} columns."
    elif len(shape) == 1 and columns in (shape[0],) and columns != 1:
        hint = "Pass x.reshape(1, -1) for a single row."
    elif len(shape) == 1:
        hint = "Pass x.reshape(-1, 1) for a single column."
    raise ValueError(f"{owner}: expected x of shape (n, {columns or 'd'}); got {shape}. {hint}")


def check_sequences(owner: str, x: Tensor, columns: int | None) -> None:
    """Raise a ValueError unless `x` has shape (n, T, d), with at least one step and the right number of columns.

    Args:
        owner: Who asks.
        x: Sequences.
        columns: How many columns there must be; None for any.
    """
    shape = tuple(x.shape)
    if len(shape) == 3 and shape[1] > 0 and columns in (None, shape[2]):
        return
    hint = "Reshape it: sequences, steps, columns."
    if len(shape) == 3:
        hint = f"Pass data_dim={shape[2]}, or give {columns} columns." if shape[1] else "Leave out empty ones."
    raise ValueError(f"{owner}: expected x of shape (n, T, {columns or 'd'}); got {shape}. {hint}")


def check_binary(owner: str, x: Tensor, advice: str) -> None:
    """Raise a ValueError unless all entries of a matrix are zeros and ones.

    Args:
        owner: Who asks.
        x: Rows, shape (n, d).
        advice: What to do otherwise.
    """
    other = (x != 0) & (x != 1)
    if bool(other.any()):
        row, column = other.nonzero()[0].tolist()
        raise ValueError(
            f"{owner}: expected zeros and ones; got {x[row, column].item():g} at row {row}, column {column}. {advice}"
        )


def check_weights(owner: str, rows: int, sample_weights: Tensor) -> None:
    """Raise a ValueError unless there is one weight for each row, none negative and not all zero.

    Args:
        owner: Who asks.
        rows: How many there are.
        sample_weights: How often each row counts.
    """
    if sample_weights.shape != (rows,):
        raise ValueError(
            f"{owner}: expected sample_weights of shape ({rows},), one a row; got {tuple(sample_weights.shape)}. "
            "Drop or repeat entries."
        )
    if not bool((sample_weights >= 0).all() & (sample_weights > 0).any()):
        raise ValueError(
            f"{owner}: expected sample_weights >= 0, not all 0; got {sample_weights.min().item():g} as the least. "
            "Leave rows out that do not count."
        )
