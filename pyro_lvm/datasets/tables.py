"""Tables from files: .csv (with or without a header), .npy, .npz and .parquet, or the name of an embedded set."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_lvm.datasets import NAMES, load

__all__ = ["read_arrays", "read_table"]

MISSING = ("", "na", "n/a", "#n/a", "<na>", "null", "none")
UNREADABLE = (csv.Error, zipfile.BadZipFile, zlib.error, pd.errors.ParserError)


def read_table(source: str, keys: Collection[str] = ()) -> pd.DataFrame:
    """Read a table of numbers; empty cells are NaN.

    Args:
        source: A file's path, or the name of an embedded data set.
        keys: Columns that may hold anything, as names of sequences.

    Raises:
        FileNotFoundError: There is no such file or data set.
        ValueError: The file is not a table of numbers.
    """
    path = Path(source)
    if source in NAMES and not path.exists():
        data = load(source)
        return pd.DataFrame(data.x.numpy(), columns=list(data.columns))
    if not path.is_file():
        raise FileNotFoundError(
            f"data: no file '{source}', and no data set of that name. Data sets: {', '.join(NAMES)}."
        )
    readers = {".csv": _csv, ".npy": _numpy, ".npz": _numpy, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"data: expected a file ending in {', '.join(readers)}; got '{path.name}'.")
    with _in_one_sentence(source):
        table = reader(path)
        _check(table.drop(columns=[name for name in keys if name in table]) if len(keys) else table)
    return table


def read_arrays(source: str) -> dict[str, NDArray[Any]]:
    """What a .npz file holds besides its table, by name; nothing for any other file.

    Args:
        source: A file's path.

    Raises:
        ValueError: An array cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return {}
    with _in_one_sentence(source), np.load(path, allow_pickle=False) as loaded:
        names = list(loaded)
        return {name: loaded[name] for name in names if name != _table_of(names)}


@contextmanager
def _in_one_sentence(source: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ValueError(
            "data: expected pyarrow, which reads .parquet files; it is not installed. "
            "Run pip install pyarrow, or save the table as .csv."
        ) from error
    except (*UNREADABLE, ValueError, OSError, KeyError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data: '{source}' is not a table of numbers that can be read ({reason}).") from error


def _check(table: pd.DataFrame) -> None:
    if not table.shape[1]:
        raise ValueError("it has no columns")
    if not len(table):
        raise ValueError("it has no rows" + ("" if isinstance(table.columns, pd.RangeIndex) else ", only a header"))
    for i, name in enumerate(table.columns):
        kind = table.dtypes.iloc[i]
        if not pd.api.types.is_numeric_dtype(kind):
            held = f"values of type {kind}" if isinstance(kind, np.dtype) and kind.kind in "mM" else "text"
            raise ValueError(f"column '{name}' holds {held}; drop or encode it")


def _csv(path: Path) -> pd.DataFrame:
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = next((cells for cells in csv.reader(file) if cells), [])
    if not first:
        raise ValueError("the file is empty")
    header = 0 if any(not _is_number(cell) for cell in first) else None
    table = pd.read_csv(path, header=header, encoding="utf-8-sig")
    if header is None:
        table.columns = [f"column {i}" for i in table.columns]
    return table


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, or nothing: a row of those is no header."""
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return True


def _numpy(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:  # numpy leaves a damaged file open
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _rows(loaded)
        names = list(loaded)
        name = _table_of(names)
        if name is None:
            held = ", ".join(names) or "no array"
            raise ValueError(f"it holds {held}; name the array to use 'x'")
        member = loaded[name]
        if not isinstance(member, np.ndarray):
            raise ValueError(f"{name} is no array")
        return _rows(member)


def _table_of(names: list[str]) -> str | None:
    """The array that is the table: 'x', or the one that numpy was given without a name."""
    return next((name for name in ("x", "arr_0") if name in names), None)


def _rows(array: NDArray[Any]) -> pd.DataFrame:
    if array.dtype.names:
        return pd.DataFrame.from_records(array)
    array = array.reshape(-1, 1) if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"expected rows and columns, got shape {array.shape}")
    return pd.DataFrame(array, columns=[f"column {i}" for i in range(array.shape[1])])


def _parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)
