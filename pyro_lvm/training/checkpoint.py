"""Fits on disk: a folder with a readable `fit.json` and a `state.pt` that holds tensors only.

Written to a temporary folder and renamed, so that a crash leaves the old fit or the new one, never half of one. Read
with `weights_only=True`: loading a fit never runs code that the file brings.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.protocols import Inference, LatentVariableModel, Sampler
from pyro_lvm.training.choices import GUIDES, INFERENCES, MODELS, OBJECTIVES
from pyro_lvm.training.result import Fit
from pyro_lvm.training.scope import Scope

__all__ = ["check_folder", "load", "save"]

FORMAT = 1


def check_folder(folder: Path) -> None:
    """Raise a FileExistsError if a folder holds something that is not a fit."""
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {"fit.json", "state.pt"}):
        raise FileExistsError(f"save: '{folder}' exists and is not a fit, or holds other files. Choose another folder.")


def save(fit: Fit, folder: Path) -> None:
    """Write a fit; an older fit in the folder is replaced.

    Raises:
        FileExistsError: The folder holds something that is not a fit.
    """
    check_folder(folder)
    buffer = io.BytesIO()
    torch.save(_state(fit), buffer)
    state = buffer.getvalue()
    record = {**_record(fit), "state_sha256": hashlib.sha256(state).hexdigest()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (fresh / "state.pt").write_bytes(state)
        (fresh / "fit.json").write_text(json.dumps(record, indent=1))
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.replace(old / "fit")
            fresh.replace(folder)
            shutil.rmtree(old)
        else:
            fresh.replace(folder)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)


def _state(fit: Fit) -> dict[str, Any]:
    return {
        "tensors": {name: tensor.detach().cpu().clone() for name, tensor in fit.tensors().items()},
        "inference": fit.inference.state_dict() if hasattr(fit.inference, "state_dict") else {},
        "draws": {n: v.cpu() for n, v in fit.draws.items()} if fit.sampled else None,
        "initial_values": dict(getattr(fit.model, "initial_values", {})),
        "rng": fit.rng_state,
        "seen": fit.seen,
    }


def _record(fit: Fit) -> dict[str, Any]:
    from pyro_lvm import __version__

    objective = _objective(getattr(fit.inference, "objective", None))
    return {
        "format": FORMAT,
        "pyro_lvm": __version__,
        "model": _program(fit.model, MODELS),
        "guide": None if fit.guide is None else _program(fit.guide, GUIDES),
        "inference": _named(fit.inference, INFERENCES),
        "options": _options(fit.inference),
        "objective": objective,
        "own": [part for part in getattr(fit.inference, "own", ()) if part != "loss" or objective is None],
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
        plain = {option: value for option, value in config.items() if _plain(value)}
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
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if _plain(v)}


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(v) for v in value)
    return isinstance(value, (int, float, str, bool))


def load(
    folder: str | Path, *, model: Callable | None = None, guide: Callable | None = None, inference: Any = None
) -> Fit:
    """Read a fit.

    Args:
        folder: Where it was saved.
        model: The model, if it is not one of this package: a file holds no code.
        guide: The guide, likewise.
        inference: The inference, as it was passed to `lvm.fit`: needed to resume with an optimizer or a loss of one's
            own.

    Returns:
        The fit, equal to the one saved to the last bit, and able to resume.

    Raises:
        FileNotFoundError: There is no fit in the folder.
        TypeError: The model, guide or inference is a name, or a class where an object is needed.
        ValueError: The files are damaged, a model or guide is needed, or the inference is another one than the fit's.
    """
    folder = Path(folder)
    if not (folder / "fit.json").is_file():
        raise FileNotFoundError(f"load: no fit in '{folder}' (no fit.json).")
    damaged = f"load: the fit in '{folder}' is damaged or cut off"
    try:
        record = json.loads((folder / "fit.json").read_text())
        version = record["format"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{damaged} (fit.json cannot be read). Save it again, or restore a copy.") from error
    if version != FORMAT:
        raise ValueError(f"load: '{folder}' has format {version}; this version reads {FORMAT}. Upgrade pyro-lvm.")
    try:
        content = (folder / "state.pt").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{damaged} (no state.pt). Save it again, or restore a copy.") from error
    if hashlib.sha256(content).hexdigest() != record["state_sha256"]:
        raise ValueError(f"{damaged} (state.pt does not match its checksum). Save it again, or restore a copy.")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{damaged} (state.pt holds more than tensors). Do not trust it.") from error
    return _rebuild(record, state, model, guide, inference)


def _rebuild(record: dict[str, Any], state: dict[str, Any], model: Any, guide: Any, inference: Any) -> Fit:
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
        spec = record.get("objective")
        loss = {"loss": _remade(spec)} if spec else {}
        inference = INFERENCES[record["inference"]](**loss, **record["options"])
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
    fit.seen = state["seen"]
    fit.missing = [] if given else record.get("own", [])
    _restore(fit, state, ours=record["model"]["name"] is not None)
    if state["draws"] is not None:
        fit.draws = state["draws"]
    return fit


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
        if None not in (mine, value) and _plain(mine) and json.loads(json.dumps(mine)) != value:
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
    return registry[spec["name"]](*args, **spec.get("config", {}), **options)


def _restore(fit: Fit, state: dict[str, Any], ours: bool) -> None:
    """Run the programs once on zeros, so that they create their parameters, then put the saved values in.

    A model of ours without parts of the user's has the file's shapes: some depend on more of the data than its shape.
    """
    saved = state["tensors"]
    fit.scope.adopt(fit.model, fit.guide)
    _put(fit, saved, ours)
    if isinstance(fit.model, LatentVariableModel):
        fit.model.initial_values = dict(state["initial_values"])
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
