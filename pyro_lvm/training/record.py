"""What files hold of a fit: entries that JSON can write, and tensors."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch

from pyro_lvm.training.choices import GUIDES, INFERENCES, MODELS, OBJECTIVES
from pyro_lvm.training.pretraining import Pretraining
from pyro_lvm.training.result import Fit

__all__ = ["FORMAT", "is_plain", "record_of", "state_of"]

FORMAT = 1


def state_of(fit: Fit) -> dict[str, Any]:
    """What a fit holds in tensors, and state of its inference."""
    machine = None if fit.pretraining is None else fit.pretraining.machine
    return {
        "tensors": {name: tensor.detach().cpu().clone() for name, tensor in fit.tensors().items()},
        "inference": fit.inference.state_dict() if hasattr(fit.inference, "state_dict") else {},
        "draws": {n: v.cpu() for n, v in fit.draws.items()} if fit.sampled else None,
        "initial_values": dict(getattr(fit.model, "initial_values", {})),
        "rng": fit.rng_state,
        "seen": fit.seen,
        "unfinished": None if fit.unfinished is None else vars(fit.unfinished),
        "pretraining": None if machine is None else state_of(machine),
    }


def record_of(fit: Fit) -> dict[str, Any]:
    """What a fit holds besides, and how to make its programs and its inference again."""
    from pyro_lvm import __version__

    return {
        "format": FORMAT,
        "pyro_lvm": __version__,
        "model": _program(fit.model, MODELS),
        "guide": None if fit.guide is None else _program(fit.guide, GUIDES),
        **_described(fit.inference),
        "diagnostics": getattr(fit.inference, "diagnostics", {}),
        "shapes": fit.shapes,
        "columns": fit.columns,
        "plate": fit.plate,
        "seed": fit.seed,
        "history": fit.history,
        "converged": fit.converged,
        "stopped": fit.stopped,
        "restarts": fit.restarts,
        "trained_on": fit.trained_on,
        "last_epoch": fit.last_epoch,
        "pretraining": None if fit.pretraining is None else _pretraining(fit.pretraining),
    }


def _described(inference: Any) -> dict[str, Any]:
    """How to make an inference again, and what of it are parts of the user's."""
    objective = _objective(getattr(inference, "objective", None))
    return {
        "inference": _named(inference, INFERENCES),
        "options": _options(inference),
        "objective": objective,
        "own": [part for part in getattr(inference, "own", ()) if part != "loss" or objective is None],
    }


def _pretraining(pretraining: Pretraining) -> dict[str, Any]:
    inference, machine = pretraining.inference, pretraining.machine
    inference = inference() if isinstance(inference, type) else inference
    return {
        "max_epochs": pretraining.max_epochs,
        "batch_size": pretraining.batch_size,
        "inference": inference if inference is None or isinstance(inference, str) else _described(inference),
        "level": pretraining.level,
        "machine": None if machine is None else record_of(machine),
        "begun": pretraining.begun,
    }


def _program(program: Any, registry: dict[str, Any]) -> dict[str, Any]:
    """How to make a program again: by registered name and arguments, or not at all."""
    name = _named(program, registry)
    described = getattr(program, "__qualname__", type(program).__name__)
    if name is None:
        return {"name": None, "described": described}
    config = getattr(program, "config", {}) if isinstance(program, torch.nn.Module) else {}
    try:
        json.dumps(config)
    except TypeError:
        plain = {option: value for option, value in config.items() if is_plain(value)}
        return {"name": None, "described": f"{described} with parts of your own", "config": plain}
    return {"name": name, "described": described, "config": config}


def _named(thing: Any, registry: dict[str, Any]) -> str | None:
    return next((name for name, kind in registry.items() if type(thing) is kind), None)


def _objective(loss: Any) -> dict[str, Any] | None:
    """An objective of ours by name and options, objectives among them; None if it holds parts of the user's."""
    name = _named(loss, OBJECTIVES)
    if name is None:
        return None
    options = _options(loss)
    for option in inspect.signature(type(loss)).parameters:
        value = getattr(loss, option, None)
        if value is not None and option not in options:
            options[option] = _objective(value)
            if options[option] is None:
                return None
    return {"name": name, "options": options}


def _options(inference: Any) -> dict[str, Any]:
    """Constructor arguments of an inference or an objective that are plain numbers or text."""
    names = inspect.signature(type(inference)).parameters
    values = {name: getattr(inference, name, None) for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if is_plain(v)}


def is_plain(value: Any) -> bool:
    """Whether a value is of numbers or text alone."""
    if isinstance(value, (tuple, list)):
        return all(is_plain(v) for v in value)
    return isinstance(value, (int, float, str, bool))
