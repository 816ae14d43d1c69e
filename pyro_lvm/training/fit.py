"""The front door: one call from a model and data to a fitted model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pyro import poutine

from pyro_lvm import _pyro
from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.infer.structure import structure
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import Inference, LatentVariableModel, Sampler
from pyro_lvm.training.callbacks import Callback, Checkpoint, EarlyStopping, Progress
from pyro_lvm.training.choices import choose_guide, choose_inference, restart_loss
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.labels import (
    Labelled,
    Unlabelled,
    as_labelled,
    check_labels,
    labels_of,
    name_states,
    unclamp,
    without_labels,
)
from pyro_lvm.training.loop import Run
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import Scope

__all__ = ["fit", "train"]

SVI_STEPS = 2000
FULL_BATCH_ROWS = 4096
BATCH_SIZE = 1024


def fit(
    model: Callable,
    data: Any,
    guide: Callable | str | None = None,
    inference: Inference | Sampler | str | None = None,
    *,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    validation: Any = None,
    restarts: int = 1,
    tol: float | None = None,
    patience: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Fit:
    """Fit a model to data.

    The model, guide and inference passed in are templates: they are copied, so two fits never share parameters, and
    Pyro's global parameter store is left alone.

    Args:
        model: Any Pyro program: a model of this package, a `PyroModule`, or a plain function.
        data: Array, tensor or DataFrame (the model's first argument); a dict of arguments; a
            `torch.utils.data.Dataset`; or a list of sequences of unequal length. An entry of a dict that is not an
            argument of the model but one of its sites holds that site's known values, row by row, and -1 (in whole
            numbers) or NaN (in others) where it is unknown: `lvm.fit(model, {"x": x, "z": labels})`.
        guide: "map", "normal" or "multivariate-normal"; a guide or a class made from the model; by default "normal"
            if the model has continuous latent sites, else none.
        inference: "em", "svi" or "mcmc", or an object such as `lvm.infer.EM()`; by default EM for a model without
            continuous latent sites, else SVI.
        max_epochs: Passes over the data; by default 2000 for EM and 2000 steps for SVI.
        batch_size: Rows per step; by default all of them (for SVI up to 4096 rows, else 1024).
        validation: Held-out data like `data`: early stopping then watches it, and the best state is kept.
        restarts: Independent starts; the best is returned and all are reported in `fit.restarts`.
        tol: Relative improvement below which training stops; by default 1e-10 for EM and 1e-5 for SVI.
        patience: Epochs over which the improvement is measured; by default 1 for EM, 200 for SVI.
        seed: Makes the run reproducible; by default drawn from torch's generator.
        device: "auto" (the data's own, or a GPU if there is one), "cpu", "cuda", ...
        checkpoint: Folder to save the running fit to, for `lvm.load(folder).resume(data)`.
        callbacks: Functions called with the run after every epoch; one that returns True ends the training.
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
    _check_options(model, restarts, max_epochs, batch_size, tol, patience)
    where = _device(device, data, model)
    arguments = as_labelled(data, model, where)
    model, arguments = unclamp(model, arguments)
    held_out = None if validation is None else as_labelled(validation, model, where)
    seed = int(torch.randint(2**31, (1,)).item()) if seed is None else int(seed)
    results: list[Fit] = []
    for restart in range(restarts):
        label = f"restart {restart + 1}/{restarts}" if restarts > 1 else "fit"
        result = _start(model, guide, inference, arguments, seed + restart, where, restarts)
        train(
            result,
            arguments,
            None if held_out is None else result.arguments(held_out),
            max_epochs=max_epochs,
            batch_size=batch_size,
            tol=tol,
            patience=patience,
            callbacks=[*callbacks, *([Checkpoint(checkpoint)] if checkpoint and restarts == 1 else [])],
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


def _start(
    model: Callable,
    guide: Callable | str | None,
    inference: Inference | Sampler | str | None,
    arguments: Arguments,
    seed: int,
    device: torch.device | None,
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
                initialize(*unlabelled.args, **unlabelled.kwargs)
            check_labels(model, arguments)
            if isinstance(model, LatentVariableModel):
                name_states(model, arguments)
            with _pyro.validation(True):
                trace = structure(Labelled(model), arguments.args, arguments.kwargs)
            chosen = choose_inference(inference, model, trace)
            if isinstance(chosen, Sampler) and restarts > 1:
                raise ValueError(
                    f"fit: expected restarts=1 with {type(chosen).__name__}; got {restarts}. Raise num_chains."
                )
            chosen.model = model
            chosen.guide = choose_guide(guide, model, trace, chosen)
        rng = torch.get_rng_state()
    return Fit(
        model,
        chosen.guide,
        chosen,
        scope,
        shapes=unlabelled.shapes(),
        columns=arguments.names,
        plate=_row_plate(trace),
        seed=seed,
        rng_state=rng,
    )


def train(
    result: Fit,
    arguments: Arguments,
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
    """Train a fit in place, from its own random state."""
    result.remember(arguments)
    inference = result.inference
    if any(labels_of(result.model, a.kwargs) for a in (arguments, validation) if a is not None):
        inference.model, inference.guide = result.program, result.guide and Unlabelled(result.guide, result.model)
    rows = arguments.num_rows
    with torch.random.fork_rng(), result.scope(), fitting_threads(arguments.main.numel()):
        torch.set_rng_state(result.rng_state)
        if isinstance(inference, Sampler):
            _sample(result, inference, arguments, progress, label)
        else:
            full = inference.full_batch
            if full and batch_size is not None and batch_size < rows:
                raise ValueError(
                    f"fit: {type(inference).__name__} uses all rows in every step; got batch_size={batch_size}. "
                    "Leave batch_size out, or use inference='svi'."
                )
            if batch_size is None and not full and rows > FULL_BATCH_ROWS:
                batch_size = BATCH_SIZE
            steps = math.ceil(rows / batch_size) if batch_size else 1
            epochs = max_epochs or (SVI_STEPS if full else max(10, math.ceil(SVI_STEPS / steps)))
            patience = patience or (1 if full else max(1, math.ceil(200 / steps)))
            tol = (1e-10 if full else 1e-5) if tol is None else tol
            stop = EarlyStopping(tol, patience, "loss" if validation is None else "validation_loss")
            bar = Progress(progress, epochs, label)
            run = Run(
                inference,
                arguments,
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


def _check_options(model: Any, restarts: int, max_epochs: Any, batch_size: Any, tol: Any, patience: Any) -> None:
    if not callable(model):
        raise TypeError(f"fit: expected model to be a Pyro program (a callable); got {type(model).__name__}.")
    if isinstance(model, type):
        raise TypeError(f"fit: expected a model, got the class {model.__name__}. Make one: {model.__name__}(...).")
    for name, value in (
        ("restarts", restarts),
        ("max_epochs", max_epochs),
        ("batch_size", batch_size),
        ("patience", patience),
    ):
        if value is not None and (int(value) != value or value < 1):
            raise ValueError(f"fit: expected {name} to be a whole number >= 1; got {value}.")
    if tol is not None and not tol >= 0:
        raise ValueError(f"fit: expected tol >= 0; got {tol}.")


def _device(device: str | torch.device, data: Any, model: Any) -> torch.device | None:
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"fit: expected device 'auto', 'cpu', 'cuda' or the like; got {device!r}.") from error
    if isinstance(data, torch.Tensor) and data.device.type != "cpu":
        return data.device
    if isinstance(model, torch.nn.Module) and torch.cuda.is_available():
        return torch.device("cuda")
    return None


def _row_plate(trace: poutine.Trace) -> str:
    """The plate of the rows: "data", or the largest of the outermost ones."""
    frames = {
        frame.name: frame.size
        for site in trace.nodes.values()
        if site["type"] == "sample" and site["is_observed"]
        for frame in [f for f in site["cond_indep_stack"] if f.vectorized][:1]
    }
    if "data" in frames or not frames:
        return "data"
    return max(frames, key=lambda name: frames[name])
