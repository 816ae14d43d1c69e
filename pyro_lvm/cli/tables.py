"""Tables from files as a model's arguments, for the command line: columns taken out, rows parted into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from pyro_lvm.datasets.tables import read_arrays, read_table

__all__ = ["Table", "read_covariates", "write", "write_arrays"]


@dataclass
class Table:
    """Rows of a file.

    Attributes:
        x: The columns that the model describes.
        taken: Columns taken out of the table, by argument, and what else its file holds, by name.
        sequences: Where the rows of each sequence are, in their order; None if the table is one series, or no series.
        key: The column that says which sequence a row belongs to.
    """

    x: pd.DataFrame
    taken: dict[str, Any] = field(default_factory=dict)
    sequences: list[NDArray[np.int64]] | None = None
    key: pd.Series | None = None

    @classmethod
    def read(
        cls, source: str, drop: Sequence[str] | None = None, sequence: str | None = None, **columns: str | None
    ) -> Table:
        """Read a file; arrays of a .npz file besides `x` are further arguments, or known values of sites, by name.

        Args:
            source: A file's path, or the name of an embedded data set.
            drop: Columns or arrays to leave out.
            sequence: The column whose values tell sequences apart.
            columns: The column, or the array of one axis, for each argument that is not `x`.

        Raises:
            ValueError: There is no such column.
        """
        x = read_table(source, keys=[*(drop or []), *([] if sequence is None else [sequence])])
        arrays: dict[str, Any] = read_arrays(source)
        taken: dict[str, Any] = {}
        for argument, column in [*columns.items(), *((None, c) for c in drop or []), ("sequence", sequence)]:
            if column is None:
                continue
            if column not in x.columns and column not in arrays:
                names = ", ".join(map(str, [*x.columns, *arrays]))
                raise ValueError(f"data: expected a column out of {names}; got '{column}'.")
            values = x.pop(column) if column in x.columns else arrays.pop(column)
            values = pd.Series(values) if argument is not None and np.ndim(values) == 1 else values
            if argument is not None:
                taken[argument] = values
        key = taken.pop("sequence", None)
        taken = {**arrays, **taken}
        if key is None:
            return cls(x, taken)
        if key.isna().any():
            raise ValueError(f"data: expected '{sequence}' to name a sequence in every row; got an empty cell.")
        codes, _ = pd.factorize(key)
        return cls(x, taken, [np.flatnonzero(codes == i) for i in range(codes.max() + 1)], key)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `lvm.fit` takes.

        Raises:
            ValueError: A weight differs within a sequence.
        """
        if self.sequences is None:
            return {"x": self.x, **self.taken}
        arguments: dict[str, Any] = {"x": [self.x.iloc[rows] for rows in self.sequences]}
        for name, values in self.taken.items():
            if name != "sample_weights":
                arguments[name] = [np.asarray(values)[rows] for rows in self.sequences]
                continue
            parts = [pd.Series(values).iloc[rows] for rows in self.sequences]
            odd = next((i for i, part in enumerate(parts) if part.nunique() > 1), None)
            if odd is not None:
                raise ValueError(f"data: expected one weight for each sequence; got several in sequence {odd}.")
            arguments[name] = np.array([part.iloc[0] for part in parts])
        return arguments

    def in_rows(self, values: Any) -> NDArray[Any]:
        """Values of every row, from what a verb of `Fit` returns for these arguments."""
        if self.sequences is None:
            return np.asarray(values)
        parts = [np.asarray(part) for part in values]
        out = np.empty((len(self.x), *parts[0].shape[1:]), dtype=parts[0].dtype)
        for rows, part in zip(self.sequences, parts, strict=True):
            out[rows] = part
        return out

    def with_key(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of these rows, with the column that tells sequences apart in front, if there is one."""
        if self.key is not None:
            table.insert(0, self.key.name, self.key.to_numpy())
        return table

    @property
    def names(self) -> list[Any]:
        """What each sequence is called."""
        if self.sequences is None or self.key is None:
            return [0]
        return [self.key.iloc[rows[0]] for rows in self.sequences]


def read_covariates(source: str, sequence: str | None = None) -> Any:
    """Covariates from the array of that name of a .npz file, or from a table that holds nothing else.

    Args:
        source: As in `Table.read`.
        sequence: The column of the table whose values tell sequences apart; the covariates are then a list of tables.

    Raises:
        ValueError: The .npz file has no such array.
    """
    if Path(source).suffix.lower() != ".npz":
        return Table.read(source, None, sequence).arguments["x"]
    arrays = read_arrays(source)
    if "covariates" not in arrays:
        raise ValueError(f"data: expected an array 'covariates' in '{source}'; got {', '.join(arrays) or 'none'}.")
    return arrays["covariates"]


def write(table: pd.DataFrame, out: Path | None) -> None:
    """Print a table, or write it to a file."""
    if out is None:
        typer.echo(table.to_csv(index=False), nl=False)
    else:
        table.to_csv(out, index=False)
        typer.echo(f"{len(table)} rows written to {out}", err=True)


def write_arrays(arrays: dict[str, NDArray[Any]], out: Path | None, rows: Table) -> None:
    """Print matrices with a row for every row of a table, or write them to a file of arrays or of columns.

    Raises:
        ValueError: A .npy file cannot hold them all.
    """
    if out is not None and out.suffix in (".npy", ".npz"):
        if out.suffix == ".npz":
            np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for options
        elif len(arrays) == 1:
            np.save(out, next(iter(arrays.values())))
        else:
            raise ValueError(f"--out: expected a .npz or .csv file for {', '.join(arrays)}; got '{out}'.")
        typer.echo(f"{len(rows.x)} rows written to {out}", err=True)
        return
    columns = {}
    for name, values in arrays.items():
        matrix = values.reshape(len(values), -1)
        columns.update({f"{name}_{j}": matrix[:, j] for j in range(matrix.shape[1])})
    write(rows.with_key(pd.DataFrame(columns)), out)
