"""Commands that train: `demo`, `list`, `fit`, `resume`."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from pyro_lvm.cli.app import (
    DataOption,
    DropOption,
    Folder,
    SequenceOption,
    WeightsOption,
    app,
    counted,
    load,
    one_line,
    read,
)
from pyro_lvm.cli.tables import Table
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["demo", "fit", "list_models", "resume"]

EpochsOption = Annotated[int | None, typer.Option(help="Most passes over the data.")]
BatchOption = Annotated[int | None, typer.Option(help="Rows of a step; all by default.")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar if someone is watching.")]


@app.command()
@one_line
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to write fits, pictures and report.html.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Few steps: shows that it runs, not what it finds.")] = False,
) -> None:
    """Fit Old Faithful by EM, SVI and NUTS, compare the posteriors, and write a report."""
    from pyro_lvm.demo import run

    run(out, quick=quick)


@app.command("list")
@one_line
def list_models() -> None:
    """List the models, with their inferences, guides and example data."""
    from pyro_lvm.catalog import CATALOG

    for entry in CATALOG.values():
        signature = inspect.signature(entry.model)
        typer.echo(f"{entry.name}: {entry.summary}")
        typer.echo(f"  --inference  {', '.join(entry.inferences)}")
        typer.echo(f"  --guide      {', '.join(entry.guides)}")
        if entry.prior_guides:
            typer.echo(f"               with priors {', '.join(entry.prior_guides)}")
        typer.echo(f"  --set        {', '.join(signature.parameters)}")
        typer.echo(f"  --data       {entry.data} (example)")
        typer.echo(f"  reference    {entry.reference}")


@app.command()
@one_line
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
        typer.Option("--set", help="A setting of the model, e.g. num_components=3 or hidden=12,8; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes the run reproducible.")] = 0,
    restarts: Annotated[int, typer.Option(help="Independent starts, of which the best is kept.")] = 1,
    max_epochs: EpochsOption = None,
    batch_size: BatchOption = None,
    pretrain_epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data for each layer of a deep belief net, before all are trained together: by "
            "default 30, of few rows more; 0 to start from random layers."
        ),
    ] = None,
    progress: ProgressOption = True,
) -> None:
    """Fit a model to a table and save the fit; a deep belief net is pretrained layer by layer."""
    import pyro_lvm as lvm
    from pyro_lvm.training.checkpoint import check_folder

    check_folder(out)
    entry = _entry(model)
    table = Table.read(data, drop, sequence, sample_weights=weights, z=labels)
    known = table.taken.get("z")
    if labels is not None and isinstance(known, pd.Series):  # -1 besides empty cells is no whole number any more
        table.taken["z"] = known.mask(known.isna().any() & (known == -1))
    rows = table.arguments
    options = (
        {"priors": True}
        if inference in ("coordinate-ascent", "svi", "mcmc") and "priors" in inspect.signature(entry.model).parameters
        else {}
    )
    options.update(_settings(entry.model, settings or []))
    made = entry.model(**options)
    layered = hasattr(made, "machine")
    if pretrain_epochs is not None and not layered:
        raise ValueError(f"--pretrain-epochs: expected a model of layers, as DeepBeliefNet; got {model}. Leave it out.")
    if pretrain_epochs is not None:
        whole_number("--pretrain-epochs", "passes", pretrain_epochs, least=0)
    common: dict[str, Any] = {"batch_size": batch_size, "max_epochs": max_epochs, "progress": progress}
    if layered and pretrain_epochs != 0:
        if restarts != 1:
            raise ValueError(f"--restarts: expected 1 with layers that are pretrained; got {restarts}. Try seeds.")
        given: dict[str, Any] = {"max_epochs": pretrain_epochs, "batch_size": batch_size}
        given = {name: value for name, value in given.items() if value is not None}
        alone = _unlabelled(made, rows)
        result = lvm.greedy_pretrain(made, alone, guide, inference, seed=seed, progress=progress, **given)
        if not result.stopped.startswith("interrupted"):
            result.resume(rows, **common)
    else:
        result = lvm.fit(made, rows, guide=guide, inference=inference, seed=seed, restarts=restarts, **common)
    _keep(result, rows, out, progress)


@app.command()
@one_line
def resume(
    folder: Folder,
    data: DataOption,
    out: Annotated[Path | None, typer.Option("--out", help="Another folder for the result.")] = None,
    weights: WeightsOption = None,
    drop: DropOption = None,
    sequence: SequenceOption = None,
    max_epochs: EpochsOption = None,
    batch_size: BatchOption = None,
    progress: ProgressOption = True,
) -> None:
    """Train a saved fit on from where it stopped, and save it."""
    from pyro_lvm.training.checkpoint import check_folder

    result = load(folder)
    check_folder(out or folder)
    rows = read(result, data, drop, sequence, sample_weights=weights).arguments
    result.resume(rows, max_epochs=max_epochs, batch_size=batch_size, progress=progress)
    _keep(result, rows, out or folder, progress)


def _keep(result: Any, rows: Any, out: Path, progress: bool) -> None:
    from pyro_lvm.ops.progress import without_progress

    result.save(out)
    typer.echo(f"{result}")
    try:
        if not result.stopped.startswith("interrupted"):
            with without_progress(not progress):
                evidence = result.evidence(rows)
            total = f"{evidence.total:.4f} nats over {counted(result, evidence, rows)}"
            typer.echo(f"log-likelihood {total}; saved to {out}")
            return
    except KeyboardInterrupt:
        pass
    typer.echo(f"saved to {out}, as far as it was learned; `pyro-lvm score` gives its log-likelihood")


def _unlabelled(model: Any, rows: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model without known values of its sites."""
    from pyro_lvm.training.labels import labels_of

    known = labels_of(model, rows)
    return {name: values for name, values in rows.items() if name not in known}


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
        settings[name] = _value(text)
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in settings]
    if missing:
        raise ValueError(f"{model.__name__} needs --set {missing[0]}=...")
    return settings


def _value(text: str) -> Any:
    """What JSON or Python reads; else words, several if there are commas."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return [_value(part.strip()) for part in text.split(",")] if "," in text else text
