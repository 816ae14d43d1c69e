"""Commands that make rows: `predict`, `transform`, `impute`, `reconstruct`, `forecast`, `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from pyro_lvm.cli.app import (
    DataOption,
    DropOption,
    Folder,
    OutOption,
    SequenceOption,
    app,
    load,
    one_line,
    read,
    sequential,
)
from pyro_lvm.cli.tables import read_covariates, write, write_arrays

__all__ = ["forecast", "impute", "predict", "reconstruct", "sample", "transform"]

ArraysOption = Annotated[Path | None, typer.Option("--out", help="Write a .csv, .npy or .npz here, not to the screen.")]


@app.command()
@one_line
def predict(
    folder: Folder,
    data: DataOption,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    out: OutOption = None,
) -> None:
    """Print the most probable component or state of each row, or of its units, and the probability of every one.

    The states of sequences are those of the most probable path.
    """
    result = load(folder)
    table = read(result, data, drop, sequence)
    arguments = result.arguments(table.arguments)
    probabilities = result.predict_proba(arguments)
    label = "state" if sequential(result) else "component"
    states = probabilities if isinstance(probabilities, dict) else {label: probabilities}
    columns: dict[str, Any] = {}
    for name, found in states.items():
        values = table.in_rows(found)
        if values.ndim > 2:
            unit = "unit" if name == label else name
            for j in range(values.shape[1]):
                columns[f"{unit}_{j}"] = values[:, j].argmax(-1)
                columns.update({f"probability_{unit}_{j}_{k}": values[:, j, k] for k in range(values.shape[-1])})
            continue
        columns[name] = table.in_rows(result.predict(arguments)) if sequential(result) else values.argmax(-1)
        columns.update({f"probability_{name}_{k}": values[..., k] for k in range(values.shape[-1])})
    write(table.with_key(pd.DataFrame(columns)), out)


@app.command()
@one_line
def transform(
    folder: Folder, data: DataOption, drop: DropOption = None, sequence: SequenceOption = None, out: ArraysOption = None
) -> None:
    """Print the posterior means of each row's latent vector, or the probabilities of its hidden units."""
    result = load(folder)
    table = read(result, data, drop, sequence)
    found = result.transform(table.arguments)
    parts = found if isinstance(found, dict) else {"z": found}
    write_arrays({name: table.in_rows(values) for name, values in parts.items()}, out, table)


@app.command()
@one_line
def reconstruct(
    folder: Folder, data: DataOption, drop: DropOption = None, sequence: SequenceOption = None, out: OutOption = None
) -> None:
    """Print each row as expected given its own latent variables."""
    result = load(folder)
    table = read(result, data, drop, sequence)
    values = table.in_rows(result.reconstruct(table.arguments)).reshape(len(table.x), -1)
    write(table.with_key(pd.DataFrame(values, columns=table.x.columns)), out)


@app.command()
@one_line
def impute(
    folder: Folder, data: DataOption, drop: DropOption = None, sequence: SequenceOption = None, out: OutOption = None
) -> None:
    """Fill in empty cells with their posterior means, and print the table."""
    result = load(folder)
    table = read(result, data, drop, sequence)
    filled = table.in_rows(result.impute(table.arguments))
    missing = table.x.isna().to_numpy()
    typer.echo(f"{missing.sum()} of {missing.size} cells filled in", err=True)
    write(table.with_key(table.x.astype(float).mask(missing, filled)), out)


@app.command()
@one_line
def forecast(
    folder: Folder,
    data: DataOption,
    steps: Annotated[int, typer.Option(help="How many steps to look ahead.")],
    drop: DropOption = None,
    sequence: SequenceOption = None,
    out: OutOption = None,
) -> None:
    """Print the means, and the middle 90 %, of the steps that follow given sequences, and their states.

    Of discrete states the probabilities; of normal ones the means.
    """
    result = load(folder)
    table = read(result, data, drop, sequence)
    coming = result.forecast(table.arguments, steps, num_samples=1000)
    low, high = coming.interval(0.9)
    parts = [values if table.sequences else values.unsqueeze(0) for values in (coming.mean, low, high, coming.states)]
    mean, low, high, states = (values.flatten(0, 1).flatten(1).numpy() for values in parts)
    columns: dict[str, Any] = {"step": np.tile(np.arange(1, steps + 1), len(table.names))}
    symbols = mean.shape[1] != low.shape[1]  # the means of symbols are the probabilities of all of them
    for j, name in enumerate(table.x.columns if not symbols else range(mean.shape[1])):
        columns[f"probability_{name}" if symbols else f"{name}"] = mean[:, j]
        if not symbols:
            columns.update({f"{name}_5%": low[:, j], f"{name}_95%": high[:, j]})
    state = "state" if coming.paths.is_floating_point() else "probability_state"
    columns.update({f"{state}_{k}": states[:, k] for k in range(states.shape[1])})
    rows = pd.DataFrame(columns)
    if table.key is not None:
        rows.insert(0, table.key.name, np.repeat(np.array(table.names), steps))
    write(rows, out)


@app.command()
@one_line
def sample(
    folder: Folder,
    n: Annotated[
        int | None, typer.Option("-n", help="Number of rows, or of sequences; 100, or those of the covariates.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each sequence.")] = None,
    covariates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A row of covariates for each to generate: a table, or `covariates` in an .npz file."
        ),
    ] = None,
    sequence: SequenceOption = None,
    seed: Annotated[int, typer.Option(help="Makes the rows reproducible.")] = 0,
    out: OutOption = None,
) -> None:
    """Print rows generated by a fit; of sequences, their steps."""
    import torch

    result = load(folder)
    given: dict[str, Any] = {}
    if covariates is not None:
        found = read_covariates(covariates, sequence)
        single = sequential(result) and not isinstance(found, list) and np.ndim(found) < 3
        given = {"covariates": [found] if single else found}
        n = len(given["covariates"]) if n is None else n
    n = 100 if n is None else n
    torch.manual_seed(seed)
    rows = result.sample(n, num_steps=steps, **given)
    numbers = rows.reshape(rows.shape[:2].numel() if sequential(result) else n, -1).numpy()
    names = result.columns if len(result.columns or ()) == numbers.shape[1] else None  # else made of the columns
    table = pd.DataFrame(numbers, columns=names or [f"column {i}" for i in range(numbers.shape[1])])
    if sequential(result):
        table.insert(0, "sequence", np.repeat(np.arange(n), rows.shape[1]))
    write(table, out)
