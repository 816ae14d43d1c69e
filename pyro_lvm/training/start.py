"""A fit before its first step: copies of what was passed, at their start."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch.nn.parameter import is_lazy

from pyro_lvm import _pyro
from pyro_lvm.infer.coordinate_ascent import CoordinateAscent
from pyro_lvm.infer.em import EM
from pyro_lvm.infer.nonfinite import in_one_sentence
from pyro_lvm.infer.structure import row_plate, structure
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import Inference, LatentVariableModel, Sampler
from pyro_lvm.training.choices import (
    PAIRS,
    choose_guide,
    choose_inference,
    discrete_sites,
    discrete_vectors,
    draws_sites_of_rows,
)
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.labels import (
    Labelled,
    check_labels,
    labels_of,
    name_states,
    without_labels,
)
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import Scope
from pyro_lvm.training.sites import check_sites
from pyro_lvm.training.trials import choose_start

__all__ = ["start"]


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
    with torch.random.fork_rng(), fitting_threads(arguments.main.numel()):
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
            chosen = choose_inference(inference, model, open_sites if inference is None else trace, guide)
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
            inner = _pyro.without_handlers(chosen.guide)
            if weighted and isinstance(inner, AutoGuide) and draws_sites_of_rows(open_sites):
                raise ValueError(
                    f"fit: {type(inner).__name__} counts the latent sites of every row once; got sample_weights. Use "
                    "another guide, as 'local', or repeat rows."
                )
            if isinstance(inner, torch.nn.Module) and any(map(is_lazy, inner.parameters())):
                with in_one_sentence("fit", started=False):  # it takes its sizes from rows, as the model has by now
                    structure(chosen.guide, unlabelled.args, unlabelled.kwargs)
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
