"""Arguments against the program that is to take them: names, finite values, weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.distributions import HMM, LinearGaussianChain, LinearGaussianRows
from pyro_lvm.handlers.clamp import clamp
from pyro_lvm.infer.structure import REFUSALS, structure
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.arguments import WEIGHTS, Arguments
from pyro_lvm.training.choices import MODELS
from pyro_lvm.training.sequences import Layout

__all__ = ["check_names", "check_values", "takers"]

TAKERS = (HMM, LinearGaussianChain, LinearGaussianRows)  # laws of which entries may be NaN
SHOWN = 10  # names in a sentence

OF_A_SITE = "; known values of a latent site, passed by the name of the site and not as an argument, may be NaN"


def check_names(arguments: Arguments, model: Any) -> None:
    """Raise a ValueError unless the model can be called with these arguments."""
    program = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):
        return  # no program, or one that does not say what it takes
    ours = isinstance(model, LatentVariableModel)
    try:
        signature.bind(*arguments.args, **arguments.kwargs)
        if not ours or arguments.args or "x" in arguments.kwargs:
            return
    except TypeError:
        pass
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = [n for n, p in signature.parameters.items() if p.kind in plain and not (ours and n == "size")]
    in_order = [n for n in own if signature.parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY]
    unnamed = len(arguments.args)
    got = [*in_order[:unnamed], *(f"one without a name ({i})" for i in range(len(in_order), unnamed))]
    got += arguments.kwargs
    name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "the model")
    hint = "Pass a dict with those names."
    if unnamed > len(in_order):
        hint = "Parts of a tuple are arguments in their order: pass dicts; labels go by the name of their site."
    if "lengths" in arguments.kwargs and "lengths" not in own:
        hint = "It takes no list of sequences of unequal length: pass one table."
    if WEIGHTS in arguments.kwargs and WEIGHTS not in own:
        hint = "It takes no weights: repeat the rows that count more."
    raise ValueError(f"data: expected the arguments of {name}, {', '.join(own)}; got {', '.join(got)}. {hint}")


def check_values(arguments: Arguments, model: Any) -> None:
    """Raise a ValueError unless there are rows, of finite numbers but for what the model takes as missing."""
    model = model.model if isinstance(getattr(model, "clamp", None), clamp) else model
    named = {**{f"argument {i}" if i else "x": v for i, v in enumerate(arguments.args)}, **arguments.kwargs}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 0 or value.dim() == 0:
            raise ValueError(f"data: expected {name} to have at least one row; got shape {tuple(value.shape)}.")
        if value.is_complex():
            raise ValueError(f"data: expected {name} to be real; got {value.dtype}.")
        if value.is_floating_point():
            missing = value is arguments.main and (
                getattr(model, "handles_missing", False) or (bool(value.isnan().any()) and _sums_out(model, arguments))
            )
            bad = torch.isinf(value) if missing else ~torch.isfinite(value)
            instead = takers(arguments.layout is not None)
            if value is not arguments.main:
                instead = "" if name == WEIGHTS or isinstance(model, LatentVariableModel) else OF_A_SITE
            _check_finite(name, value, bad, arguments.layout, instead)
    if arguments.kwargs.get(WEIGHTS) is not None:
        _check_weights(arguments.kwargs[WEIGHTS], arguments.num_rows)


def _sums_out(model: Any, arguments: Arguments) -> bool:
    """Whether a program of the user's own observes the data in a site that takes NaN for missing."""
    if isinstance(model, LatentVariableModel) or not callable(model):
        return False
    try:
        trace = structure(model, arguments.args, arguments.kwargs)
    except REFUSALS:
        return False
    return any(isinstance(trace.nodes[name]["fn"], TAKERS) for name in trace.observation_nodes)


def takers(sequences: bool) -> str:
    """The models, by name, that take missing values in such data, as the end of an advice; nothing if none does."""
    alike = [(n, kind) for n, kind in MODELS.items() if getattr(kind, "sequences", False) == sequences]
    names = [n for n, kind in alike if getattr(kind, "handles_missing", False)]
    if len(names) > SHOWN:
        names[SHOWN - 1 : -1] = ["..."]
    return f", or use a model that takes missing values: {', '.join(names)}" if names else ""


def _check_finite(name: str, value: Tensor, bad: Tensor, layout: Layout | None, instead: str) -> None:
    if not bool(bad.any()):
        return
    where = tuple(bad.nonzero()[0].tolist())
    nan = bool(torch.isnan(value[where]))
    count = int((torch.isnan(value) if nan else torch.isinf(value)).sum())
    axes = ("row", "column") if layout is None else ("sequence", "step", "column")
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, where, strict=False))
    rows = f"{'those' if count > 1 else 'that'} row{'s' if count > 1 else ''}"
    raise ValueError(
        f"data: expected {name} to be finite; got {count} {'missing value (NaN)' if nan else 'infinite value'}"
        f"{'s' if count > 1 else ''}, the first at {place}. Drop or impute {rows}{instead if nan else ''}."
    )


def _check_weights(weights: Any, num_rows: int) -> None:
    expected = f"data: expected {WEIGHTS} of shape ({num_rows},), one for each row"
    if not isinstance(weights, Tensor) or weights.shape != (num_rows,):
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise ValueError(f"{expected}; got {got}.")
    if bool((weights < 0).any()):
        row = int((weights < 0).nonzero()[0])
        raise ValueError(f"{expected}, >= 0; got {weights[row].item():g} at row {row}. Drop rows that do not count.")
    if not bool((weights > 0).any()):
        raise ValueError(f"{expected}, not all zero; got zeros only. Give the rows that count a positive weight.")
