"""Tables from files: .csv (with or without a header), .npy, .npz and .parquet, or the name of an embedded set."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_lvm.datasets import NAMES, load

__all__ = ["read_table"]


def read_table(source: str) -> pd.DataFrame:
    """Read a table of numbers.

    Args:
        source: A file's path, or the name of an embedded data set.

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
    try:
        return reader(path)
    except (ValueError, OSError, KeyError, EOFError, pd.errors.ParserError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data: '{source}' is not a table of numbers that can be read ({reason}).") from error


def _csv(path: Path) -> pd.DataFrame:
    with path.open(newline="", encoding="utf-8") as file:
        first = next(csv.reader(file), [])
    if not first:
        raise ValueError("the file is empty")
    header = 0 if any(not _is_number(cell) for cell in first) else None
    table = pd.read_csv(path, header=header)
    if header is None:
        table.columns = [f"column {i}" for i in table.columns]
    text = [str(name) for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise ValueError(f"column '{text[0]}' holds text; drop or encode it")
    return table


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip() == ""
    return True


def _numpy(path: Path) -> pd.DataFrame:
    loaded: Any = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        array = loaded
    else:
        names = list(loaded)
        name = "x" if "x" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise ValueError(f"it holds {', '.join(names)}; name the array to use 'x'")
        array = loaded[name]
    array = array.reshape(len(array), -1) if array.ndim == 1 else array
    if array.ndim != 2:
        raise ValueError(f"expected rows and columns, got shape {array.shape}")
    return pd.DataFrame(array, columns=[f"column {i}" for i in range(array.shape[1])])


def _parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)
