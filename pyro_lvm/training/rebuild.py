"""A fit made again from what `checkpoint` wrote: programs by name, then their tensors."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.protocols import Inference, LatentVariableModel, Sampler
from pyro_lvm.training.choices import GUIDES, INFERENCES, MODELS, OBJECTIVES
from pyro_lvm.training.interruption import Unfinished
from pyro_lvm.training.pretraining import Pretraining
from pyro_lvm.training.record import is_plain
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import Scope

__all__ = ["rebuild"]


def rebuild(record: dict[str, Any], state: dict[str, Any], model: Any, guide: Any, inference: Any) -> Fit:
    """A fit from what `record_of` and `state_of` gave.

    Raises:
        TypeError: The model, guide or inference is a name, or a class where an object is needed.
        ValueError: Entries are missing, or what was passed is not the fit's.
    """
    try:
        fit = _made_again(record, state, model, guide, inference)
        fit.prototype()
        tensors, initial_values, _ = state["tensors"], state["initial_values"], fit.history["loss"]
    except KeyError as error:
        raise ValueError(
            f"load: expected files with every entry of a fit; got none named {error}: something else than this version "
            "wrote them. Save the fit again, or restore a copy."
        ) from error
    _restore(fit, tensors, initial_values, ours=record["model"]["name"] is not None)
    return fit


def _made_again(record: dict[str, Any], state: dict[str, Any], model: Any, guide: Any, inference: Any) -> Fit:
    """The fit but for its tensors."""
    given = inference is not None
    _check_given(record, model, guide, inference)
    if model is None:
        model = _make(record["model"], MODELS, "model")
    else:
        model, guide = _pyro.copy_programs(_completed(model, record["model"].get("config", {})), guide)
    if record["guide"] is not None:
        if guide is None:
            guide = _make(record["guide"], GUIDES, "guide", model)
        elif isinstance(guide, type):
            guide = guide(model)
    if given:
        (inference,) = _pyro.copy_programs(inference)
    elif record["inference"]:
        inference = _untrained(record)
    if inference is not None:
        inference.model, inference.guide = model, guide
        if hasattr(inference, "load_state_dict"):
            inference.load_state_dict(state["inference"])
        if record["diagnostics"]:
            inference.diagnostics = record["diagnostics"]
    columns = record["columns"]
    fit = Fit(
        model,
        guide,
        inference,
        Scope(),
        shapes=record["shapes"],
        columns=None if columns is None else tuple(columns),
        plate=record["plate"],
        seed=record["seed"],
        rng_state=state["rng"],
    )
    for name in ("history", "converged", "stopped", "restarts", "trained_on"):
        setattr(fit, name, record[name])
    fit.last_epoch = tuple(record.get("last_epoch", fit.last_epoch))
    fit.seen = state["seen"]
    fit.unfinished = Unfinished(**state["unfinished"]) if state.get("unfinished") else None
    fit.missing = [] if given else record.get("own", [])
    if state["draws"] is not None:
        fit.draws = state["draws"]
    if record.get("pretraining") is not None:
        fit.pretraining = _pretraining(record["pretraining"], state["pretraining"])
    return fit


def _untrained(record: dict[str, Any]) -> Any:
    """An inference from its name, options and objective."""
    spec = record.get("objective")
    loss = {"loss": _remade(spec)} if spec else {}
    return _make({"name": record["inference"]}, INFERENCES, "inference", **loss, **record["options"])


def _pretraining(record: dict[str, Any], state: dict[str, Any] | None) -> Pretraining:
    described, machine = record["inference"], record["machine"]
    whole = isinstance(described, dict) and described["inference"] is not None and not described["own"]
    return Pretraining(
        record["max_epochs"],
        record["batch_size"],
        _untrained(described) if whole else described,
        record["level"],
        None if machine is None or state is None else rebuild(machine, state, None, None, None),
        record["begun"],
    )


def _check_given(record: dict[str, Any], model: Any, guide: Any, inference: Any) -> None:
    for name, value, classes in (("model", model, False), ("guide", guide, True)):
        if value is not None and (not callable(value) or (isinstance(value, type) and not classes)):
            raise TypeError(
                f"load: expected {name} to be a Pyro program, the one that was fitted; got {_shown(value)}. "
                "Leave it out if it is one of this package."
            )
    if inference is None:
        return
    if isinstance(inference, type) or not isinstance(inference, (Inference, Sampler)):
        raise TypeError(
            "load: expected inference to be an object with step() or run(), as it was passed to lvm.fit; got "
            f"{_shown(inference)}. Leave it out if no part of it is your own."
        )
    trained_by = INFERENCES.get(record["inference"])
    if isinstance(trained_by, type) and not isinstance(inference, trained_by):
        raise ValueError(
            f"load: expected inference to be {trained_by.__name__}, by which this was fitted; got "
            f"{type(inference).__name__}. Leave it out if no part of it is your own."
        )


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)


def _completed(model: Any, config: dict[str, Any]) -> Any:
    """A model of ours that leaves sizes to the data, with those of the fit's model; any other as it is.

    Raises:
        ValueError: What it does not leave open is something else than the fit's.
    """
    if not isinstance(model, LatentVariableModel):
        return model
    own = model.config
    for name, value in config.items():
        mine = own.get(name)
        if None not in (mine, value) and is_plain(mine) and json.loads(json.dumps(mine)) != value:
            raise ValueError(
                f"load: expected a {type(model).__name__} with {name}={value!r}, as the one that was fitted; got "
                f"{mine!r}. Pass that, or leave model out if it has no parts of your own."
            )
    sizes = {name: value for name, value in config.items() if name in own and own[name] is None and value is not None}
    return type(model)(**{**own, **sizes}) if sizes else model


def _remade(spec: dict[str, Any]) -> Any:
    """An objective from what `_objective` says of it."""
    options = {name: _remade(value) if isinstance(value, dict) else value for name, value in spec["options"].items()}
    return _make(spec, OBJECTIVES, "objective", **options)


def _make(spec: dict[str, Any], registry: dict[str, Any], kind: str, *args: Any, **options: Any) -> Any:
    if spec["name"] is None:
        raise ValueError(
            f"load: this fit's {kind} ('{spec['described']}') is your own code, which files do not hold. "
            f"Pass it: lvm.load(folder, {kind}=...)."
        )
    if spec["name"] not in registry:
        raise ValueError(f"load: no {kind} named {spec['name']!r} in this version. Upgrade pyro-lvm.")
    make, options = registry[spec["name"]], {**spec.get("config", {}), **options}
    for name, parameter in list(inspect.signature(make).parameters.items())[len(args) :]:
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and name not in options:
            raise KeyError(name)
    return make(*args, **options)


def _restore(fit: Fit, saved: dict[str, torch.Tensor], initial_values: dict[str, Any], ours: bool) -> None:
    """Run the programs once on zeros, so that they create their parameters, then put the saved values in.

    A model of ours without parts of the user's has the file's shapes: some depend on more of the data than its shape.
    """
    fit.scope.adopt(fit.model, fit.guide)
    _put(fit, saved, ours)
    if isinstance(fit.model, LatentVariableModel):
        fit.model.initial_values = dict(initial_values)
        lacking = {name for name in fit.tensors() if name.startswith("model:")} - saved.keys()
        if lacking:
            wrote = "as one that another version of this package wrote. Fit the model anew."
            own = "which this model has. Pass the one that was fitted."
            raise ValueError(f"load: the file lacks {', '.join(sorted(lacking)[:3])}, {wrote if ours else own}")
    arguments = fit.prototype()
    with fit.scope(), torch.random.fork_rng(), _pyro.validation(False), rows(search=False):
        if not isinstance(fit.model, LatentVariableModel):  # those have their parameters from the start
            fit.model(*arguments.args, **arguments.kwargs)
        if fit.guide is not None:
            fit.guide(*arguments.args, **arguments.kwargs)
    present = _put(fit, saved, ours)
    for lost, what in (
        (saved.keys() - present, "does not have"),
        (present - saved.keys(), "has, and the file has not,"),
    ):
        if lost:
            raise ValueError(
                f"load: the model or guide {what} {', '.join(sorted(lost)[:3])}. Pass the ones that were fitted."
            )


def _put(fit: Fit, saved: dict[str, Any], ours: bool) -> set[str]:
    tensors = fit.tensors()
    for name, value in saved.items():
        if name in tensors:
            whose, _, own = name.partition(":")
            free = whose == "model" and ours
            if isinstance(tensors[name], torch.nn.Parameter) and tensors[name].shape != value.shape and not free:
                raise ValueError(
                    f"load: expected a {whose} whose '{own}' has shape {tuple(value.shape)}; "
                    f"got {tuple(tensors[name].shape)}. Pass the one that was fitted, or leave it out if it is ours."
                )
            tensors[name].data = value.clone()
    return set(tensors)
