"""One array as a tensor, whoever made it: numpy, pandas, polars, scipy.sparse, torch, or a nested list."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_tensor"]

KINDS = "an array, tensor, DataFrame, dict, Dataset, DataLoader or list"


def as_tensor(value: Any, name: str) -> Tensor:
    """Convert one array.

    Missing entries (masked, None or NA in a typed column) become NaN.

    Args:
        value: An array, sparse or dense; a table; a sequence of numbers, of sequences or of arrays.
        name: What to call it in messages.

    Raises:
        ValueError: It does not hold numbers.
        TypeError: It is no array at all.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        return value if value.layout == torch.strided else value.to_dense()
    if isinstance(value, (list, tuple)) and value and all(_is_array(part) for part in value):
        return _stack([as_tensor(part, f"{name}[{i}]") for i, part in enumerate(value)], name)
    array = _numbers(_array(value, name))
    if array.dtype.kind not in "biufc":
        if not array.ndim:
            raise TypeError(f"data: expected {KINDS}; got {_described(value)}. Convert it to one of these.")
        raise ValueError(
            f"data: expected {name} to hold numbers; got {_kind(array)}. Drop or encode columns that are not numeric."
        )
    return torch.from_numpy(np.array(array, dtype=_native(array.dtype), order="C"))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "to_numpy") or hasattr(value, "toarray")


def _stack(parts: list[Tensor], name: str) -> Tensor:
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"data: expected the arrays in {name} to have one shape; got {sorted(shapes)}. Concatenate them."
        )
    return torch.stack(parts)


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Objects that are all numbers, as numbers."""
    plain = array.dtype.kind == "O" and array.ndim and all(isinstance(v, (Real, np.bool_)) for v in array.flat)
    return array.astype(float) if plain else array


def _native(dtype: np.dtype) -> np.dtype:
    """The nearest type that torch computes with: native byte order, at most 64 bits."""
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float64)
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int64)
    if dtype.kind == "c" and dtype.itemsize > 16:
        return np.dtype(np.complex128)
    return dtype.newbyteorder("=")


def _array(value: Any, name: str) -> NDArray[Any]:
    if np.ma.isMaskedArray(value):
        return np.ma.filled(value.astype(float), np.nan) if np.ma.is_masked(value) else np.asarray(value)
    if isinstance(value, pd.DataFrame):
        return _frame(value, name)
    if isinstance(value, pd.Series):
        return _column(value)
    if hasattr(value, "toarray"):
        return np.asarray(value.toarray())
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"data: expected {name} to be a table of numbers; got {type(value).__name__}.") from error


def _frame(frame: pd.DataFrame, name: str) -> NDArray[Any]:
    if all(isinstance(dtype, np.dtype) and dtype.kind in "iuf" for dtype in frame.dtypes):
        return frame.to_numpy()
    columns = [_column(frame.iloc[:, i]) for i in range(frame.shape[1])]
    for label, column in zip(frame.columns, columns, strict=True):
        if column.dtype.kind not in "biufc":
            raise ValueError(
                f"data: expected {name} to hold numbers; got {_kind(column)} in column '{label}'. Drop or encode it."
            )
    return np.column_stack(columns)


def _column(column: pd.Series) -> NDArray[Any]:
    if isinstance(column.dtype, np.dtype) or not pd.api.types.is_numeric_dtype(column.dtype):
        return _numbers(np.asarray(column))
    if column.isna().any():
        return column.to_numpy(dtype=float, na_value=np.nan)
    return column.to_numpy(dtype=getattr(column.dtype, "numpy_dtype", float))


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind in "USO" and all(isinstance(v, str) for v in array.flat):
        return "text"
    if array.dtype.kind == "O":
        kinds = sorted({type(v).__name__ for v in array.flat})
        return f"objects of type {', '.join(kinds[:3])}"
    return "dates or times" if array.dtype.kind in "mM" else f"records of type {array.dtype}"


def _described(value: Any) -> str:
    if hasattr(value, "__next__"):
        return f"a {type(value).__name__}, which can be read only once"
    return f"the text {value!r}" if isinstance(value, str) else type(value).__name__
