"""The application, options that commands share, and how errors are told."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_lvm.cli.tables import Table

__all__ = [
    "DataOption",
    "DropOption",
    "Folder",
    "OutOption",
    "SequenceOption",
    "WeightsOption",
    "app",
    "counted",
    "load",
    "main",
    "one_line",
    "read",
    "sequential",
]

app = typer.Typer(
    help="Latent-variable models for Pyro: declare a model, swap the inference, compare the posteriors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[
    str,
    typer.Option(
        "--data", help="A .csv, .npy, .parquet or .npz file (x, and further arguments by name), or e.g. 'faithful'."
    ),
]
Folder = Annotated[Path, typer.Argument(help="A folder written by `pyro-lvm fit`.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", metavar="COLUMN", help="The column that says how often each row counts.")
]
DropOption = Annotated[
    list[str] | None, typer.Option("--drop", metavar="COLUMN", help="A column to leave out; repeatable.")
]
SequenceOption = Annotated[
    str | None,
    typer.Option("--sequence-column", metavar="COLUMN", help="The column that tells sequences apart; else one series."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Write a .csv here instead of printing.")]


def one_line(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors that say what a user did wrong into one line and status 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
        except (ValueError, TypeError, OSError) as error:
            message = " ".join(str(error).split())
            typer.echo(f"pyro-lvm: {message}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("pyro-lvm: interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def _show_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
    if not issubclass(category, (DeprecationWarning, FutureWarning)):
        typer.echo(f"note: {message}", err=True)


def load(folder: Path) -> Any:
    """The fit in a folder."""
    import pyro_lvm as lvm

    return lvm.load(folder)


def read(
    result: Any, source: str, drop: list[str] | None = None, sequence: str | None = None, **columns: str | None
) -> Table:
    """Read a table for a fit; see `Table.read`.

    Raises:
        ValueError: The table has columns that the fit does not know, beside all that it does.
    """
    table = Table.read(source, drop, sequence, **columns)
    names, known = [str(name) for name in table.x.columns], result.columns or ()
    others = [name for name in names if name not in known]
    if known and others and set(known) <= set(names):
        options = " ".join(f"--drop {name}" for name in others)
        raise ValueError(f"data: expected columns {', '.join(known)}; got {', '.join(others)} besides. Pass {options}.")
    return table


def sequential(result: Any) -> bool:
    """Whether a fit is of a model of sequences."""
    return getattr(result.model, "sequences", False)


def counted(result: Any, evidence: Any, arguments: dict[str, Any]) -> str:
    """How many rows or sequences evidence counts, and which sites' known values, in words."""
    from pyro_lvm.training.labels import labels_of

    count, known = evidence.num_rows, ", ".join(labels_of(result.model, arguments))
    rows = f"{count:g} {'sequence' if sequential(result) else 'row'}{'' if count == 1 and sequential(result) else 's'}"
    return f"{rows} and known values of {known}" if known else rows


def main() -> None:
    """Entry point of the `pyro-lvm` command."""
    sys.exit(app(prog_name="pyro-lvm"))
