"""The command line. A user's mistake ends with status 2 and one line, never with a traceback."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from pyro_lvm.command_tables import Table, write

app = typer.Typer(
    help="Latent-variable models for Pyro: declare a model, swap the inference, compare the posteriors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[str, typer.Option("--data", help="A .csv, .npy, .npz or .parquet file, or e.g. 'faithful'.")]
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


def _one_line(command: Callable[..., None]) -> Callable[..., None]:
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


@app.command()
@_one_line
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to write fits, pictures and report.html.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Few steps: shows that it runs, not what it finds.")] = False,
) -> None:
    """Fit Old Faithful by EM, SVI and NUTS, compare the posteriors, and write a report."""
    from pyro_lvm.demo import run

    run(out, quick=quick)


@app.command("list")
@_one_line
def list_models() -> None:
    """List the models, with their inferences, guides and example data."""
    from pyro_lvm.catalog import CATALOG

    for entry in CATALOG.values():
        signature = inspect.signature(entry.model)
        typer.echo(f"{entry.name}: {entry.summary}")
        typer.echo(f"  --inference  {', '.join(entry.inferences)}")
        typer.echo(f"  --guide      {', '.join(entry.guides)}")
        typer.echo(f"  --set        {', '.join(signature.parameters)}")
        typer.echo(f"  --data       {entry.data} (example)")
        typer.echo(f"  reference    {entry.reference}")


@app.command()
@_one_line
def fit(
    model: Annotated[str, typer.Argument(help="A name that `pyro-lvm list` prints.")],
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the fit.")],
    weights: WeightsOption = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column of known components, from 0; -1 or empty where unknown."),
    ] = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    inference: Annotated[
        str | None, typer.Option(help="One that `pyro-lvm list` names for the model; by default its own.")
    ] = None,
    guide: Annotated[str | None, typer.Option(help="One that `pyro-lvm list` names for the model.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the model, e.g. num_components=3; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes the run reproducible.")] = 0,
    restarts: Annotated[int, typer.Option(help="Independent starts, of which the best is kept.")] = 1,
    max_epochs: Annotated[int | None, typer.Option(help="Most passes over the data.")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar if someone is watching.")] = True,
) -> None:
    """Fit a model to a table and save the fit."""
    import pyro_lvm as lvm

    entry = _entry(model)
    known = Table.read(data, drop, sequence, sample_weights=weights, z=labels).arguments
    rows = {name: values for name, values in known.items() if name != "z"}
    options = (
        {"priors": True}
        if inference in ("coordinate-ascent", "svi", "mcmc") and "priors" in inspect.signature(entry.model).parameters
        else {}
    )
    options.update(_settings(entry.model, settings or []))
    result = lvm.fit(
        entry.model(**options),
        known,
        guide=guide,
        inference=inference,
        seed=seed,
        restarts=restarts,
        max_epochs=max_epochs,
        progress=progress,
    )
    result.save(out)
    evidence = result.evidence(rows)
    typer.echo(f"{result}")
    typer.echo(f"log-likelihood {evidence.total:.4f} nats over {_counted(result, evidence)}; saved to {out}")


@app.command()
@_one_line
def score(
    folder: Folder,
    data: DataOption,
    weights: WeightsOption = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
) -> None:
    """Print the mean log-likelihood of rows, in nats."""
    result = _load(folder)
    evidence = result.evidence(Table.read(data, drop, sequence, sample_weights=weights).arguments)
    rows, what = evidence.num_rows, "sequence" if _sequential(result) else "row"
    error = evidence.error_of_total / rows if len(evidence.values) > 1 else float("nan")
    typer.echo(f"mean {evidence.total / rows:.6f} nats a {what} (standard error over {what}s {error:.6f})")
    typer.echo(f"total {evidence.total:.4f} nats over {_counted(result, evidence)}; {evidence.estimator}")


@app.command()
@_one_line
def predict(
    folder: Folder,
    data: DataOption,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    out: OutOption = None,
) -> None:
    """Print the most probable component or state of each row and the probability of every one.

    The states of sequences are those of the most probable path.
    """
    result = _load(folder)
    table = Table.read(data, drop, sequence)
    arguments = result.arguments(table.arguments)
    probabilities = result.predict_proba(arguments)
    label = "state" if _sequential(result) else "component"
    states = probabilities if isinstance(probabilities, dict) else {label: probabilities}
    columns: dict[str, Any] = {}
    for name, values in states.items():
        values = table.in_rows(values)
        columns[name] = table.in_rows(result.predict(arguments)) if _sequential(result) else values.argmax(-1)
        columns.update({f"probability_{name}_{k}": values[..., k] for k in range(values.shape[-1])})
    write(table.with_key(pd.DataFrame(columns)), out)


@app.command()
@_one_line
def impute(folder: Folder, data: DataOption, sequence: SequenceOption = None, out: OutOption = None) -> None:
    """Fill in empty cells with their posterior means, and print the table."""
    table = Table.read(data, None, sequence)
    filled = table.in_rows(_load(folder).impute(table.arguments))
    missing = table.x.isna().to_numpy()
    typer.echo(f"{missing.sum()} of {missing.size} cells filled in", err=True)
    write(table.with_key(table.x.astype(float).mask(missing, filled)), out)


@app.command()
@_one_line
def forecast(
    folder: Folder,
    data: DataOption,
    steps: Annotated[int, typer.Option(help="How many steps to look ahead.")],
    drop: DropOption = None,
    sequence: SequenceOption = None,
    out: OutOption = None,
) -> None:
    """Print the means, and the middle 90 %, of the steps that follow given sequences, and the states' probabilities."""
    result = _load(folder)
    table = Table.read(data, drop, sequence)
    coming = result.forecast(table.arguments, steps, num_samples=1000)
    low, high = coming.quantile(0.05), coming.quantile(0.95)
    parts = [values if table.sequences else values.unsqueeze(0) for values in (coming.mean, low, high, coming.states)]
    mean, low, high, states = (values.flatten(0, 1).flatten(1).numpy() for values in parts)
    columns: dict[str, Any] = {"step": np.tile(np.arange(1, steps + 1), len(table.names))}
    symbols = mean.shape[1] != low.shape[1]  # the means of symbols are the probabilities of all of them
    for j, name in enumerate(table.x.columns if not symbols else range(mean.shape[1])):
        columns[f"probability_{name}" if symbols else f"{name}"] = mean[:, j]
        if not symbols:
            columns.update({f"{name}_5%": low[:, j], f"{name}_95%": high[:, j]})
    columns.update({f"probability_state_{k}": states[:, k] for k in range(states.shape[1])})
    rows = pd.DataFrame(columns)
    if table.key is not None:
        rows.insert(0, table.key.name, np.repeat(np.array(table.names), steps))
    write(rows, out)


@app.command()
@_one_line
def sample(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", help="Number of rows, or of sequences.")] = 100,
    steps: Annotated[int | None, typer.Option(help="Steps of each sequence.")] = None,
    seed: Annotated[int, typer.Option(help="Makes the rows reproducible.")] = 0,
    out: OutOption = None,
) -> None:
    """Print rows generated by a fit; of sequences, their steps."""
    import torch

    result = _load(folder)
    torch.manual_seed(seed)
    rows = result.sample(n, num_steps=steps)
    numbers = rows.reshape(rows.shape[:2].numel() if _sequential(result) else n, -1).numpy()
    table = pd.DataFrame(numbers, columns=result.columns or [f"column {i}" for i in range(numbers.shape[1])])
    if _sequential(result):
        table.insert(0, "sequence", np.repeat(np.arange(n), rows.shape[1]))
    write(table, out)


@app.command()
@_one_line
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
    ranked = lvm.compare({str(folder): _load(folder) for folder in folders}, rows)
    typer.echo(ranked.to_string(float_format=lambda v: f"{v:.3f}"))


def _load(folder: Path) -> Any:
    import pyro_lvm as lvm

    return lvm.load(folder)


def _sequential(result: Any) -> bool:
    return getattr(result.model, "sequences", False)


def _counted(result: Any, evidence: Any) -> str:
    count = evidence.num_rows
    return (
        f"{count:g} {'sequence' if _sequential(result) else 'row'}{'' if count == 1 and _sequential(result) else 's'}"
    )


def _entry(name: str) -> Any:
    from pyro_lvm.catalog import CATALOG

    if name not in CATALOG:
        raise ValueError(f"expected a model out of {', '.join(CATALOG)}; got '{name}'.")
    return CATALOG[name]


def _settings(model: type, pairs: list[str]) -> dict[str, Any]:
    known = inspect.signature(model).parameters
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set: expected NAME=VALUE with NAME out of {', '.join(known)}; got '{pair}'.")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = {"True": True, "False": False, "None": None}.get(text, text)
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in settings]
    if missing:
        raise ValueError(f"{model.__name__} needs --set {missing[0]}=...")
    return settings


def main() -> None:
    """Entry point of the `pyro-lvm` command."""
    sys.exit(app(prog_name="pyro-lvm"))


if __name__ == "__main__":
    main()
