"""The front door: one call from a model and data to a fitted model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_lvm import _pyro
from pyro_lvm.infer.coordinate_ascent import CoordinateAscent
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.infer.nonfinite import in_one_sentence
from pyro_lvm.infer.structure import row_plate, structure
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import Inference, LatentVariableModel, Sampler
from pyro_lvm.training.callbacks import Callback, Checkpoint, EarlyStopping, Progress
from pyro_lvm.training.choices import (
    PAIRS,
    choose_guide,
    choose_inference,
    discrete_sites,
    discrete_vectors,
    restart_loss,
)
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.fingerprint import remember
from pyro_lvm.training.guide_draws import drawn_by
from pyro_lvm.training.labels import (
    Labelled,
    as_labelled,
    check_labels,
    labels_of,
    name_states,
    unclamp,
    without_labels,
)
from pyro_lvm.training.loop import Run
from pyro_lvm.training.options import SEEDS, check_options, choose_device, choose_seed, list_of_callbacks
from pyro_lvm.training.result import Fit
from pyro_lvm.training.schedule import PATIENCE_STEPS, choose_batch_size, has_known_length, steps_of_epoch
from pyro_lvm.training.scope import Scope, in_turn
from pyro_lvm.training.sites import check_sites
from pyro_lvm.training.stream import Stream, as_stream
from pyro_lvm.training.trials import choose_start

__all__ = ["fit", "start", "train"]

SVI_STEPS = 2000
HELD_OUT_PATIENCE = 10


@in_turn
def fit(
    model: Callable,
    data: Any,
    guide: Callable | str | None = None,
    inference: Inference | Sampler | str | None = None,
    *,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    num_rows: int | None = None,
    validation: Any = None,
    restarts: int = 1,
    tol: float | None = None,
    patience: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
) -> Fit:
    """Fit a model to data.

    The model, guide and inference passed in are templates: they are copied, so two fits never share parameters, and
    Pyro's global parameter store is left alone. Pyro's handlers are global to a process: fits in several threads, and
    what is asked of them, wait for each other. Use processes to fit in parallel.

    Args:
        model: Any Pyro program: a model of this package, a `PyroModule`, or a plain function.
        data: Array, tensor or DataFrame (the model's first argument); a dict of arguments; a
            `torch.utils.data.Dataset`, which is read whole; or a stream of batches (a `DataLoader`, an
            `IterableDataset`, anything but a list that can be iterated over once an epoch), of which one is in memory
            at a time. NaN in `x` means missing to models that handle it. An entry `sample_weights` of the dict, for
            models that take it, says how many equal rows each row stands for (EM and coordinate ascent). Sequences are
            a list of arrays, (T, d) or (T,) each; an array (n, T, d) padded on the right, in a dict with an entry
            `lengths`; or, to a model of sequences, one series (T, d) or (T,). A step of NaN is missing. An entry that
            is not an argument of the model but one of its sites, or the states of a hidden Markov site, holds known
            values, row by row, and -1 (in whole numbers) or NaN (in others) where it is unknown:
            `lvm.fit(model, {"x": x, "z": labels})`. A guide that draws the site draws these.
        guide: "map", "normal", "multivariate-normal" or "conjugate"; "local", with a normal law of every row's own,
            or another name of the catalog; a guide or a class made from the model; by default the first that goes with
            the inference if the model has continuous latent sites, else none.
        inference: "em", "coordinate-ascent", "svi" or "mcmc", or an object such as `lvm.infer.EM()`; by default EM
            for a model without continuous latent sites, else SVI.
        max_epochs: Passes over the data; by default 2000 for EM and 2000 steps for SVI.
        batch_size: Rows per step; by default all of them (for SVI up to 4096 rows, else 1024), or a stream's own.
        num_rows: Rows of a stream, if its length does not tell; batches then count for all rows, every row alike, else
            for themselves.
        validation: Held-out data like `data`: early stopping then watches it, and the best state is kept.
        restarts: Independent starts; the best is returned and all are reported in `fit.restarts`. EM and
            coordinate ascent of a model that draws its start take each from the best of five draws or more, by ten
            steps, for up to 4096 rows or steps.
        tol: Relative improvement below which training stops; by default 1e-10 for EM and 1e-5 for SVI.
        patience: Epochs over which the improvement is measured; by default 1 for EM (10 with
            `validation`), 200 steps for SVI.
        seed: Makes the run reproducible, from 0 to 2**63 - 1; by default drawn from torch's generator.
        device: "auto" (the data's own, or a GPU if there is one), "cpu", "cuda", ...
        checkpoint: Folder to save the running fit to, for `lvm.load(folder).resume(data)`.
        callbacks: Functions, or one, called with the run after every epoch; one that returns True ends the training.
        progress: Show a progress bar if someone is watching.

    Returns:
        The fit. After Ctrl-C, the fit so far.

    Raises:
        ValueError: Data, model and options do not fit together; the message says what to change.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("faithful").x
        >>> fit = lvm.fit(lvm.models.GaussianMixture(2), x, inference="em", seed=0, progress=False)
        >>> fit.converged
        True
    """
    check_options(model, restarts, max_epochs, batch_size, tol, patience, checkpoint)
    functions = list_of_callbacks(callbacks)
    where = choose_device(device, data, model)
    seed = choose_seed(seed)
    stream = as_stream(data, batch_size, num_rows)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arguments = as_labelled(data if stream is None else stream.first(), model, where)
        model, arguments = unclamp(model, arguments)
        guide, arguments = unclamp(guide, arguments, model)
    held_out = None if validation is None else as_labelled(validation, model, where)
    results: list[Fit] = []
    for restart in range(restarts):
        label = f"restart {restart + 1}/{restarts}" if restarts > 1 else "fit"
        result = start(model, guide, inference, arguments, (seed + restart) % SEEDS, where, restart, restarts)
        train(
            result,
            arguments if stream is None else stream,
            None if held_out is None else result.arguments(held_out),
            max_epochs=max_epochs,
            batch_size=batch_size,
            tol=tol,
            patience=patience,
            callbacks=[*functions, *([Checkpoint(checkpoint)] if checkpoint and restarts == 1 else [])],
            progress=progress,
            label=label,
        )
        results.append(result)
        if result.stopped == "interrupted":
            break
    best = min(results, key=restart_loss)
    if restarts > 1:
        best.restarts = [
            {
                "seed": r.seed,
                "loss": restart_loss(r),
                "epochs": len(r.history["loss"]),
                "converged": r.converged,
            }
            for r in results
        ]
    if checkpoint:
        best.save(checkpoint)
    return best


def start(
    model: Callable,
    guide: Callable | str | None,
    inference: Inference | Sampler | str | None,
    arguments: Arguments,
    seed: int,
    device: torch.device | None,
    restart: int,
    restarts: int,
) -> Fit:
    """A fit before its first step: templates copied, model initialised, guide and inference chosen."""
    unlabelled = without_labels(model, arguments)
    try:
        model, guide, inference = _pyro.copy_programs(model, guide, inference)
    except RuntimeError as error:
        raise ValueError(
            "fit: could not copy the model, guide or inference; one of them has already been run. Pass fresh ones."
        ) from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scope = Scope()
        scope.adopt(model, guide)
        with scope():
            if device is not None and isinstance(model, torch.nn.Module):
                model.to(device)
            initialize = getattr(model, "initialize", None)
            if initialize is not None:
                initialize = partial(initialize, *unlabelled.args, **_accepted(initialize, unlabelled.kwargs))
                initialize()
            check_labels(model, arguments)
            if isinstance(model, LatentVariableModel):
                name_states(model, arguments)
            with _pyro.validation(True), in_one_sentence("fit", started=False):
                trace = structure(Labelled(model), arguments.args, arguments.kwargs)
            # what is known of these rows may be latent in others: a guide serves both
            labelled = bool(labels_of(model, arguments.kwargs))
            open_sites = structure(model, unlabelled.args, unlabelled.kwargs) if labelled else trace
            if guide is None and type(model) not in PAIRS and discrete_vectors(open_sites):
                open_sites = trace  # no default guide can draw them
            chosen = choose_inference(inference, model, open_sites if inference is None else trace)
            check_sites(Labelled(model), arguments, trace, exact=isinstance(chosen, EM) or bool(discrete_sites(trace)))
            weighted = arguments.kwargs.get("sample_weights") is not None
            if weighted and discrete_sites(trace) and not isinstance(chosen, (EM, CoordinateAscent)):
                raise ValueError(
                    f"fit: {type(chosen).__name__} cannot sum discrete sites out under weights of each row; got "
                    "sample_weights. Use inference='em' or 'coordinate-ascent', or repeat rows."
                )
            if restarts > 1 and not getattr(chosen, "loss_ranks", True):
                raise ValueError(
                    f"fit: expected restarts=1, as the loss of {type(chosen.objective).__name__} does not tell which "
                    f"is best; got {restarts}. Fit with several seeds, and compare fit.evidence(x)."
                )
            if isinstance(chosen, Sampler) and restarts > 1:
                raise ValueError(
                    f"fit: expected restarts=1 with {type(chosen).__name__}; got {restarts}. Raise num_chains."
                )
            chosen.model = model
            drawn_rows = getattr(chosen, "guides", None) is None  # else only what all rows share is drawn
            chosen.guide = choose_guide(guide, model, open_sites if drawn_rows else trace, chosen)
            scope.adopt(chosen.guide)
            exact = isinstance(chosen, CoordinateAscent) or (isinstance(chosen, EM) and not chosen.guide)
            if initialize and exact and not labelled:
                choose_start(model, initialize, chosen, arguments)
            if restart and initialize is None and hasattr(chosen, "seed"):  # else all would start at the same point
                chosen.seed(*unlabelled.args, **unlabelled.kwargs)
        rng = torch.get_rng_state()
    return Fit(
        model,
        chosen.guide,
        chosen,
        scope,
        shapes=unlabelled.shapes(),
        columns=arguments.names,
        plate=row_plate(trace),
        seed=seed,
        rng_state=rng,
    )


def _accepted(function: Callable, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a function takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in parameters}


@in_turn
def train(
    result: Fit,
    data: Arguments | Stream,
    validation: Arguments | None,
    *,
    max_epochs: int | None,
    batch_size: int | None,
    tol: float | None,
    patience: int | None,
    callbacks: Sequence[Callback],
    progress: bool,
    label: str,
) -> None:
    """Train a fit in place, from its own random state; a stream's batches are converted by the fit."""
    inference = result.inference
    for rows in (data, validation):
        if isinstance(rows, Arguments):
            _take_labels(result, rows)

    def taken(batch: Any) -> Arguments:
        rows = result.arguments(batch)
        _take_labels(result, rows)
        return rows

    data = data.through(taken) if isinstance(data, Stream) else data
    numel = result.prototype().main.numel() if isinstance(data, Stream) else data.main.numel()
    with torch.random.fork_rng(), result.scope(), fitting_threads(numel):
        torch.set_rng_state(result.rng_state)
        if isinstance(inference, Sampler):
            if isinstance(data, Stream):
                raise ValueError(
                    f"fit: {type(inference).__name__} needs all rows at once; got a stream. Use inference='svi'."
                )
            (rows,) = remember(result, [data])
            _sample(result, inference, rows, progress, label)
        else:
            full = inference.full_batch
            batch_size = choose_batch_size(result, data, batch_size)
            steps = steps_of_epoch(result, data, batch_size)
            epochs = max_epochs or (SVI_STEPS if full else max(10, math.ceil(SVI_STEPS / steps)))
            few = 1 if validation is None else HELD_OUT_PATIENCE
            patience = patience or (few if full else max(1, math.ceil(PATIENCE_STEPS / steps)))
            tol = (1e-10 if full else 1e-5) if tol is None else tol
            stop = EarlyStopping(tol, patience, "loss" if validation is None else "validation_loss")
            if hasattr(inference, "expect_steps"):
                inference.expect_steps(epochs * steps if has_known_length(result, data) else math.inf)
            bar = Progress(progress, epochs, label)
            run = Run(
                inference,
                data,
                result.scope,
                lambda: result,
                validation,
                batch_size,
                result.plate,
                result.history,
            )

            def publish(run: Run) -> None:
                result.rng_state = torch.get_rng_state()

            try:
                run.train(epochs, [bar, stop, publish, *callbacks])
            finally:
                bar.close()
            result.converged, result.stopped = run.converged, run.stopped
        result.rng_state = torch.get_rng_state()


def _take_labels(result: Fit, rows: Arguments) -> None:
    """Let model and guide take known values of sites, from the first rows on that come with some."""
    inference = result.inference
    if isinstance(inference.model, Labelled) or not labels_of(result.model, rows.kwargs):
        return
    inference.guide = result.labelled_guide
    rows_drawn = getattr(inference, "guides", None) is None  # else only what all rows share, of which none is known
    drawn = drawn_by(inference.guide, rows, result.scope) if rows_drawn else ()
    inference.model = Labelled(result.model, drawn)


def _sample(result: Fit, sampler: Sampler, arguments: Arguments, progress: bool, label: str) -> None:
    """Run a sampler in place of epochs."""
    if isinstance(sampler, MCMC):
        bar = Progress(progress, sampler.num_chains * (sampler.num_samples + sampler.warmup_steps), label)
        bar.bar.unit = "draw"
        try:
            result.draws = sampler.run(*arguments.args, callback=lambda *_: bar.bar.update(1), **arguments.kwargs)
        finally:
            bar.close()
    else:
        result.draws = sampler.run(*arguments.args, **arguments.kwargs)
    result.converged = not getattr(sampler, "interrupted", False)
    result.stopped = "drew all samples" if result.converged else "interrupted"
