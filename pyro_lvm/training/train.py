"""The training of a fit, from where it stands: epochs of steps, or draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from pyro_lvm.infer.em import EM
from pyro_lvm.infer.gaussian_moments import is_exact
from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import Sampler
from pyro_lvm.training.callbacks import Callback, EarlyStopping, Progress
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.fingerprint import remember
from pyro_lvm.training.guide_draws import drawn_by
from pyro_lvm.training.labels import Labelled, labels_of
from pyro_lvm.training.loop import Run
from pyro_lvm.training.result import Fit
from pyro_lvm.training.schedule import PATIENCE_STEPS, choose_batch_size, expected_steps, steps_of_epoch
from pyro_lvm.training.scope import in_turn
from pyro_lvm.training.stream import Stream

__all__ = ["SVI_STEPS", "train"]

SVI_STEPS = 2000
HELD_OUT_PATIENCE = 10


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
            if result.unfinished is not None and not result.unfinished.fits(batch_size, data.num_rows):
                begun, result.unfinished = result.unfinished, None
                warnings.warn(
                    f"fit: expected batch_size={begun.batch_size} and {begun.num_rows} rows, as in the epoch that was "
                    f"interrupted; got batch_size={batch_size} and {data.num_rows} rows. That epoch begins anew; pass "
                    "the same to finish it.",
                    UserWarning,
                    stacklevel=4,
                )
            epochs = max_epochs or (SVI_STEPS if full else max(10, math.ceil(SVI_STEPS / steps)))
            few = 1 if validation is None else HELD_OUT_PATIENCE
            patience = patience or (few if full else max(1, math.ceil(PATIENCE_STEPS / steps)))
            least = _least_gain(result, data) if full and tol is None and validation is None else 0.0
            tol = (1e-10 if full else 1e-5) if tol is None else tol
            stop = EarlyStopping(tol, patience, "loss" if validation is None else "validation_loss", least)
            if hasattr(inference, "expect_steps"):
                done = 0 if result.unfinished is None else len(result.unfinished.losses)
                inference.expect_steps(epochs * expected_steps(result, data, steps) - done)
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


def _least_gain(result: Fit, data: Arguments | Stream) -> float:
    """Gain of an epoch, nats, that the model finds worth another."""
    each: float = getattr(result.model, "least_gain", 0.0)
    if not each or isinstance(data, Stream):
        return 0.0
    known = ~data.main.isnan()
    inside = known if data.steps is None else known & data.steps.reshape(*data.steps.shape, *[1] * (known.dim() - 2))
    return each * float(inside.flatten(1).sum(1).to(data.weights) @ data.weights)


def _take_labels(result: Fit, rows: Arguments) -> None:
    """Let model and guide take known values of sites, from the first rows on that come with some."""
    inference = result.inference
    if isinstance(inference.model, Labelled) or not labels_of(result.model, rows.kwargs):
        return
    if isinstance(inference, EM) and is_exact(result.guide):
        known = ", ".join(f"'{name}'" for name in labels_of(result.model, rows.kwargs))
        raise ValueError(
            f"fit: expected no known values of {known}: EM takes the exact posterior of normal sites of rows. Pass "
            "them under inference='svi', whose guide draws the rest."
        )
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
