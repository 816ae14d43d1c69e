"""Commands that look at fits: `score`, `compare`, `criteria`, `summary`, `loadings`, `plan`, `plot`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_lvm.cli.app import (
    DataOption,
    DropOption,
    Folder,
    OutOption,
    SequenceOption,
    WeightsOption,
    app,
    counted,
    load,
    one_line,
    read,
    sequential,
)
from pyro_lvm.cli.tables import Table, write

__all__ = ["compare", "criteria", "loadings", "plan", "plot", "score", "summary"]


@app.command()
@one_line
def score(
    folder: Folder,
    data: DataOption,
    weights: WeightsOption = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples of each row, where it is importance weighted; else 1000.")
    ] = None,
) -> None:
    """Print the mean log-likelihood of rows, in nats, and how it was computed."""
    result = load(folder)
    arguments = read(result, data, drop, sequence, sample_weights=weights).arguments
    evidence = result.evidence(arguments, samples)
    rows, what = evidence.num_rows, "sequence" if sequential(result) else "row"
    error = evidence.error_of_total / rows
    spread = f" (standard error over {what}s {error:.6f})" if math.isfinite(error) else ""  # of one row it is not known
    typer.echo(f"mean {evidence.total / rows:.6f} nats a {what}{spread}")
    typer.echo(f"total {evidence.total:.4f} nats over {counted(result, evidence, arguments)}; {evidence.how}")


@app.command()
@one_line
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders written by `pyro-lvm fit`.")],
    data: DataOption,
    weights: WeightsOption = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
) -> None:
    """Rank fits by expected log predictive density on rows, best first."""
    import pyro_lvm as lvm

    rows = Table.read(data, drop, sequence, sample_weights=weights).arguments
    ranked = lvm.compare({str(folder): load(folder) for folder in folders}, rows)
    typer.echo(ranked.to_string(float_format=lambda v: f"{v:.3f}", na_rep="unknown"))


@app.command()
@one_line
def criteria(
    folder: Folder,
    data: DataOption,
    weights: WeightsOption = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
) -> None:
    """Print the information criteria of Akaike and Schwarz of a point fit; lower is better."""
    result = load(folder)
    rows = read(result, data, drop, sequence, sample_weights=weights).arguments
    typer.echo(f"AIC {result.aic(rows):.4f}")
    typer.echo(f"BIC {result.bic(rows):.4f}")


@app.command()
@one_line
def summary(
    folder: Folder,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows by which components of a sampler's draws are aligned.")
    ] = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    out: OutOption = None,
) -> None:
    """Print the parameters: estimates, and of a posterior also standard deviations and intervals."""
    result = load(folder)
    table = result.summary(None if data is None else read(result, data, drop, sequence).arguments)
    table.insert(0, "parameter", table.index)
    write(table, out)


@app.command()
@one_line
def loadings(
    folder: Folder,
    rotation: Annotated[str | None, typer.Option(help="varimax or promax; by default the factors as they are.")] = None,
    out: OutOption = None,
) -> None:
    """Print the loadings of a linear factor model, and what share of each column its factors explain."""
    from pyro_lvm import diagnostics

    table = diagnostics.loadings(load(folder), rotation)
    table.insert(0, "column", table.index)
    write(table, out)


@app.command()
@one_line
def plan(folder: Folder, data: DataOption, drop: DropOption = None, sequence: SequenceOption = None) -> None:
    """Print how the inference would update each parameter on rows, and why."""
    result = load(folder)
    typer.echo(str(result.plan(read(result, data, drop, sequence).arguments)))


@app.command()
@one_line
def plot(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="The picture: a .png, .pdf or .svg.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Rows to look at; else 400 that the fit generates.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="samples, reconstructions, filters, latent, history, ...; by default what fits.")
    ] = None,
    image_shape: Annotated[
        str | None, typer.Option(metavar="HxW", help="The shape of rows that are images, e.g. 28x28; 'none' if none.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="A column that gives the colours of the latent space.")
    ] = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
) -> None:
    """Draw a fit."""
    result = load(folder)
    options: dict[str, Any] = {}
    rows = None
    if image_shape is not None:
        options["image_shape"] = _sides(image_shape)
    if data is not None:
        table = read(result, data, drop, sequence, labels=labels)
        if labels is not None:
            options["labels"] = table.taken.pop("labels").to_numpy()
        rows = table.arguments
    elif labels is not None:
        raise ValueError("--labels: expected --data, the rows that have the column; got none.")
    figure = result.plot(rows, kind, **options)
    figure.savefig(out)
    typer.echo(f"written to {out}", err=True)


def _sides(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    sides = text.lower().split("x")
    if not all(side.isdecimal() for side in sides):
        raise ValueError(f"--image-shape: expected HxW, e.g. 28x28, HxWx3 or none; got '{text}'.")
    return tuple(map(int, sides))
