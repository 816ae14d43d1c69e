"""The front door: one call from a model and data to a fitted model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_lvm.protocols import Inference, Sampler
from pyro_lvm.training.callbacks import Callback, Checkpoint
from pyro_lvm.training.checkpoint import check_folder
from pyro_lvm.training.choices import (
    restart_loss,
)
from pyro_lvm.training.labels import (
    as_labelled,
    unclamp,
)
from pyro_lvm.training.options import SEEDS, check_options, choose_device, choose_seed, list_of_callbacks
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import in_turn
from pyro_lvm.training.start import start
from pyro_lvm.training.stream import as_stream
from pyro_lvm.training.train import train

__all__ = ["fit"]


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
            at a time. Their tuples are the model's arguments in their order, as (x, covariates); dicts name them. NaN
            in `x` means missing to models that handle it. An entry `sample_weights` of the dict, for models that take
            it, says how many equal rows each row stands for (EM and coordinate ascent). Sequences are a list of arrays,
            (T, d) or (T,) each; an array (n, T, d) padded on the right, in a dict with an entry `lengths`; or, to a
            model of sequences, one series (T, d) or (T,). A step of NaN is missing. An entry that is not an argument of
            the model but one of its sites, or the states of a hidden Markov site, holds known values, row by row, and
            -1 (in whole numbers) or NaN (in others) where it is unknown: `lvm.fit(model, {"x": x, "z": labels})`. A
            guide that draws the site draws these.
        guide: "map", "normal", "multivariate-normal" or "conjugate"; "local", with a normal law of every row's own,
            or another name of the catalog; a guide or a class made from the model; by default the first that goes with
            the inference if the model has continuous latent sites, else none.
        inference: "em", "coordinate-ascent", "svi" or "mcmc", or an object such as `lvm.infer.EM()`; by default
            what the catalog says of a model of this package, else EM for a program without continuous latent sites, or
            SVI.
        max_epochs: Passes over the data; by default 2000 for EM and 2000 steps for SVI.
        batch_size: Rows per step; by default all of them (for SVI up to 4096 rows, else 1024), or a stream's own.
        num_rows: Rows of a stream, if its length does not tell; batches then count for all rows, every row alike. Else
            they count for themselves in the first epoch, from then on for as many rows as the last epoch gave.
        validation: Held-out data like `data`: early stopping then watches it, and the best state is kept.
        restarts: Independent starts; the best is returned and all are reported in `fit.restarts`. EM and
            coordinate ascent of a model that draws its start take each from the best of five draws or more, by ten
            steps, for up to 4096 rows or steps.
        tol: Relative improvement below which training stops; by default 1e-10 for EM and 1e-5 for SVI. EM of linear
            dynamical systems and slow features stops by default where an epoch gains less than 1e-7 nats a known entry.
        patience: Epochs over which the improvement is measured; by default 1 for EM (10 with
            `validation`), 200 steps for SVI.
        seed: Makes the run reproducible, from 0 to 2**63 - 1; by default drawn from torch's generator.
        device: "auto" (the data's own, or a GPU if there is one), "cpu", "cuda", ...
        checkpoint: Folder to save the running fit to, for `lvm.load(folder).resume(data)`.
        callbacks: Functions, or one, called with the run after every epoch; one that returns True ends the training.
        progress: Show a progress bar if someone is watching.

    Returns:
        The fit. After Ctrl-C, the fit so far: the step in hand is finished, unless Ctrl-C comes again.

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
    if checkpoint is not None:
        check_folder(Path(checkpoint))
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
    for remark in best.remarks():
        warnings.warn(remark, RuntimeWarning, stacklevel=3)
    return best
