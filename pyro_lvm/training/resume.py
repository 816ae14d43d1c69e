"""Training on from where a fit stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_lvm.infer.mcmc import MCMC
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.greedy_pretrain import pretrain
from pyro_lvm.training.labels import without_labels
from pyro_lvm.training.options import check_options, list_of_callbacks
from pyro_lvm.training.stream import as_stream
from pyro_lvm.training.train import train

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["resume"]


def resume(
    fit: Fit,
    data: Any,
    *,
    max_epochs: int | None,
    batch_size: int | None,
    num_rows: int | None,
    validation: Any,
    tol: float | None,
    patience: int | None,
    callbacks: Any,
    progress: bool,
) -> None:
    """Train a fit on, in place; see `Fit.resume`.

    Raises:
        ValueError: The inference cannot go on, or data and options do not fit together.
    """
    check_options(fit.model, 1, max_epochs, batch_size, tol, patience, None)
    if isinstance(fit.inference, MCMC):
        raise ValueError("resume: a sampler cannot be resumed. Fit again with more num_samples.")
    if fit.missing:
        raise ValueError(
            f"resume: this fit was trained with a {fit.missing[0]} of your own, which files do not hold. "
            "Load it with lvm.load(folder, inference=...) as you passed it to lvm.fit."
        )
    held_out = None if validation is None else fit.arguments(validation)
    rows = as_stream(data, batch_size, num_rows) or fit.arguments(data)
    if isinstance(fit.model, LatentVariableModel) and isinstance(rows, Arguments):
        fit.model.check_training(rows.main)
    fit.forget_draws()
    functions = list_of_callbacks(callbacks)
    if fit.pretraining is not None:
        pretrain(fit, without_labels(fit.model, fit.arguments(data)), functions, progress)
        if fit.pretraining is not None:
            return
    train(
        fit,
        rows,
        held_out,
        max_epochs=max_epochs,
        batch_size=batch_size,
        tol=tol,
        patience=patience,
        callbacks=functions,
        progress=progress,
        label="resume",
    )
