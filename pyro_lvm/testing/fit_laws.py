"""Laws of fits as things: saved, resumed, seeded, kept apart, batched, typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_lvm import training
from pyro_lvm.handlers import minibatch
from pyro_lvm.infer import SVI
from pyro_lvm.testing.checks import everywhere, own, require, same, seeded
from pyro_lvm.training import Fit

__all__ = [
    "dtype_is_kept",
    "fits_do_not_touch",
    "minibatches_are_unbiased",
    "resume_is_exact",
    "save_load_is_exact",
    "seeds_reproduce",
]


def save_load_is_exact(
    fit: Fit,
    rows: Any,
    folder: str | Path,
    *,
    model: Callable | None = None,
    guide: Any = None,
    covariates: Mapping[str, Tensor] | None = None,
) -> None:
    """A fit read back equals the one saved, bit for bit: parameters, history, draws, scores and samples.

    Args:
        fit: Any fit.
        rows: Data to score.
        folder: An empty or missing folder to save to.
        model: A fresh copy of the model if it is not one of this package.
        guide: Likewise.
        covariates: Other arguments of the model, of one row, shape (1, ...) each: what samples are drawn at.

    Raises:
        AssertionError: Something differs; the message names it.
    """
    for name, value in {**fit.params, **fit.draws}.items():
        require(not value.requires_grad, f"save_load_is_exact: '{name}' is still part of an autograd graph.")
    fit.save(folder)
    loaded = training.load(folder, model=model, guide=guide)
    same("save_load_is_exact", "parameters", _learned(fit), _learned(loaded))
    same("save_load_is_exact", "draws", fit.draws, loaded.draws)
    for name in ("history", "converged", "stopped", "restarts", "seed", "columns"):
        before, after = getattr(fit, name), getattr(loaded, name)
        require(before == after, f"save_load_is_exact: {name} was {before} and is {after}.")
    same("save_load_is_exact", "scores", {"row": fit.log_likelihood(rows)}, {"row": loaded.log_likelihood(rows)})
    samples = []
    for each in (fit, loaded):
        with seeded(0):
            samples.append({"row": each.sample(20, **everywhere(covariates, 20))})
    same("save_load_is_exact", "samples", *samples)


def resume_is_exact(
    make_model: Callable[[], Callable], data: Any, folder: str | Path, *, epochs: int = 3, **options: Any
) -> None:
    """Twice `epochs` in one go equal a run stopped after `epochs`, saved, loaded and resumed, bit for bit.

    Args:
        make_model: Makes a new model.
        data: As for `lvm.fit`.
        folder: An empty or missing folder to save to.
        epochs: Half the length of the run.
        options: Passed on to `lvm.fit`, e.g. `inference="em"`, `seed=0`, `batch_size=10`.

    Raises:
        AssertionError: Parameters or losses differ.
    """
    options = {"seed": 0, "progress": False, **options}
    endless: dict[str, Any] = {"tol": 0.0, "patience": 100 * epochs}
    whole = training.fit(make_model(), data, max_epochs=2 * epochs, **endless, **options)
    half = training.fit(
        make_model(), data, max_epochs=2 * epochs, callbacks=lambda run: run.epochs_done == epochs, **endless, **options
    )
    half.save(folder)
    ours = type(half.model).__module__.startswith("pyro_lvm.models")
    inference = options.get("inference")
    own = inference if getattr(inference, "own", ()) else None
    resumed = training.load(folder, model=None if ours else make_model(), inference=own)
    resumed.resume(data, max_epochs=epochs, progress=False, batch_size=options.get("batch_size"), **endless)
    same("resume_is_exact", "parameters", _learned(whole), _learned(resumed))
    require(
        len(whole.history["loss"]) == 2 * epochs and whole.history == resumed.history,
        f"resume_is_exact: losses were {whole.history['loss']} in one go and {resumed.history['loss']} resumed.",
    )


def seeds_reproduce(make_model: Callable[[], Callable], data: Any, **options: Any) -> None:
    """One seed gives one fit, whatever the caller's random state, and leaves that state alone.

    Args:
        make_model: Makes a new model.
        data: As for `lvm.fit`.
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Two fits with one seed differ, or a fit drew from the caller's generator.
    """
    options = {"seed": 0, "max_epochs": 3, "progress": False, **options}
    fits = []
    for state in (1, 2):
        with seeded(state):
            before = torch.get_rng_state()
            fits.append(training.fit(make_model(), data, **options))
            untouched = torch.equal(before, torch.get_rng_state())
        require(untouched, "seeds_reproduce: a fit with a seed changed the caller's random state.")
    same("seeds_reproduce", "parameters", _learned(fits[0]), _learned(fits[1]))
    same("seeds_reproduce", "draws", fits[0].draws, fits[1].draws)
    require(fits[0].history == fits[1].history, "seeds_reproduce: two fits with one seed have different losses.")


def fits_do_not_touch(make_model: Callable[[], Callable], data: Any, **options: Any) -> None:
    """A second fit with the same names, on other rows, leaves the first and Pyro's global parameter store as they were.

    Args:
        make_model: Makes a new model.
        data: As for `lvm.fit`.
        options: Passed on to `lvm.fit`.

    Raises:
        AssertionError: Parameters or scores of the first fit changed, or the global store did.
    """
    options = {"seed": 0, "max_epochs": 3, "progress": False, **options}
    with pyro.get_param_store().scope():
        store = pyro.get_param_store()
        first = training.fit(make_model(), data, **options)
        params, scores = _learned(first), first.log_likelihood(data)
        for name in params:
            pyro.param(name, torch.full((2,), 7.0))
        sentinels = {name: value.detach().clone() for name, value in store.items()}
        rows = first.arguments(data)
        half = rows.rows(slice(max(2, rows.num_rows // 2)))
        second = training.fit(make_model(), half, **{**options, "seed": 1})
        second.score(half)
        same("fits_do_not_touch", "parameters of the first fit", params, _learned(first))
        same("fits_do_not_touch", "scores of the first fit", {"row": scores}, {"row": first.log_likelihood(data)})
        same("fits_do_not_touch", "entries of the global store", sentinels, dict(store.items()))


def _learned(fit: Fit) -> dict[str, Tensor]:
    """What training moves: parameters of the model and of the guide."""
    return {name: parameter.value.detach().clone() for name, parameter in fit.parameters().items()}


# Batches and types


def minibatches_are_unbiased(model: Callable, x: Tensor, *, num_batches: int = 4, plate: str = "data") -> None:
    """Losses of equal batches under `lvm.handlers.minibatch` average to the loss of all rows, to 1e-8 relative.

    Args:
        model: A program without continuous latent sites, in float64; its rows independent.
        x: Rows, shape (n, ...); the last n mod `num_batches` are left out.
        num_batches: Batches.
        plate: The plate of the rows.

    Raises:
        AssertionError: The average differs.
    """
    size = len(x) // num_batches
    x = x[: size * num_batches]
    with own(model, (x,), {}) as program:
        full = SVI(program).loss(x)
        svi = SVI(program)
        losses = []
        for batch in x.split(size):
            with minibatch(total=len(x), plate=plate):
                losses.append(svi.loss(batch))
    mean = sum(losses) / len(losses)
    require(
        abs(mean - full) <= 1e-8 * abs(full),
        f"minibatches_are_unbiased: batches give a mean loss of {mean:.12g}, all rows {full:.12g}.",
    )


def dtype_is_kept(make_model: Callable[[], Callable], rows: Tensor, **options: Any) -> None:
    """float32 rows give float32 parameters, float64 rows float64 ones, and mean scores that agree to 1e-3 nats.

    Args:
        make_model: Makes a new model.
        rows: Floating-point rows, shape (n, ...).
        options: Passed on to `lvm.fit`; the inference must not draw random numbers, which differ between types.

    Raises:
        AssertionError: A parameter has another type, or the scores differ.
    """
    options = {"seed": 0, "max_epochs": 20, "progress": False, **options}
    scores = {}
    for dtype in (torch.float32, torch.float64):
        fit = training.fit(make_model(), rows.to(dtype), **options)
        for name, value in _learned(fit).items():
            require(
                value.dtype == dtype,
                f"dtype_is_kept: '{name}' is {value.dtype} after a fit to {dtype} rows.",
            )
        likelihood = fit.log_likelihood(rows.to(dtype))
        require(likelihood.is_floating_point(), f"dtype_is_kept: scores are {likelihood.dtype}.")
        scores[dtype] = fit.score(rows.to(dtype))
    gap = abs(scores[torch.float32] - scores[torch.float64])
    require(gap <= 1e-3, f"dtype_is_kept: mean scores of float32 and float64 rows differ by {gap:.3g} nats.")
