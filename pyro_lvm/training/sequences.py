"""Sequences as users have them: a list of ragged arrays, a padded array with lengths, or one series alone.

A program sees them as one array, padded on the right, and their lengths; answers go back in the form that was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.training.tensors import as_tensor

__all__ = [
    "LENGTHS",
    "Layout",
    "along_steps",
    "are_sequences",
    "check_lengths",
    "fill_padding",
    "read_sequences",
    "real_steps",
]

LENGTHS = "lengths"
"""The argument of a program that holds the number of steps of every sequence."""


@dataclass(frozen=True)
class Layout:
    """The form in which sequences were given.

    Attributes:
        form: "list", "padded" (an array and lengths), or "one" (a series without an axis of sequences).
        flat: Whether steps were numbers, without an axis of columns.
    """

    form: str
    flat: bool = False

    def returned(self, values: Tensor, lengths: Tensor | None, *, columns: bool = False) -> Any:
        """Values of every step in the form of the data.

        Args:
            values: Shape (n, T, ...).
            lengths: Steps of every sequence, shape (n,); all if None.
            columns: Whether the last axis is that of the data's columns.

        Returns:
            A list of arrays, one array, or the values as they are.
        """
        if columns and self.flat:
            values = values.squeeze(-1)
        if self.form == "one":
            return values[0]
        if self.form == "list":
            steps = [values.shape[1]] * len(values) if lengths is None else lengths.tolist()
            return [value[:count] for value, count in zip(values, steps, strict=True)]
        return values

    def labels(self, value: Any, name: str, steps: int) -> Tensor:
        """Known states of every step as whole numbers, -1 where unknown and in padding.

        Args:
            value: In the form of the data.
            name: What to call them in messages.
            steps: Steps that the padded data have.
        """
        if are_sequences(value):
            parts = [as_tensor(part, f"{name}[{i}]") for i, part in enumerate(value)]
            return pad(parts, -1, steps)
        tensor = as_tensor(value, name)
        return tensor.unsqueeze(0) if self.form == "one" else tensor


def are_sequences(data: Any) -> bool:
    """Whether data are a list of arrays, each of which might be a sequence."""
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)) or not len(data):
        return False
    return all(hasattr(s, "__len__") and not isinstance(s, (str, Mapping)) and np.ndim(s) > 0 for s in data)


def wanted(data: Any, model: Any) -> bool:
    """Whether data are sequences to this model: it says so, takes lengths, or they are of unequal length."""
    if getattr(model, "sequences", False):
        return True
    x = data.get("x") if isinstance(data, Mapping) else data
    if x is None or not are_sequences(x):
        return False
    return len({len(s) for s in x}) > 1 or _takes_lengths(model)


def _takes_lengths(model: Any) -> bool:
    program = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        return LENGTHS in inspect.signature(program).parameters
    except (TypeError, ValueError):
        return False


def read_sequences(data: Any, model: Any) -> tuple[dict[str, Any], Layout, tuple[str, ...] | None]:
    """A model's arguments by name, padded, the form in which they came, and the names of their columns.

    Args:
        data: Sequences, or a dict with an entry "x" of them. Other entries that have the form of `x` are padded alike.
        model: The program; one that states `sequences` gets an axis of columns even if there is only one.

    Raises:
        ValueError: There is no `x`, a sequence is empty, steps differ in shape, or lengths make no sense.
    """
    entries = dict(data) if isinstance(data, Mapping) else {"x": data}
    x = entries.pop("x", None)
    if x is None:
        raise ValueError("data: expected an entry 'x' with the sequences; got none. Pass x.")
    if isinstance(x, (list, tuple)) and not x:
        raise ValueError("data: expected at least one sequence; got an empty list. Pass arrays of shape (T, d).")
    shaped = getattr(model, "sequences", False)
    if are_sequences(x):
        parts = [as_tensor(s, f"sequence {i}") for i, s in enumerate(x)]
        layout = Layout("list", shaped and parts[0].dim() == 1)
        lengths = [len(s) for s in parts]
        padded = pad(_columned(parts) if shaped else parts)
        arguments: dict[str, Any] = {"x": padded, LENGTHS: torch.tensor(lengths)}
        for name, value in entries.items():
            arguments[name] = _padded_covariate(value, str(name), lengths) if are_sequences(value) else value
        return arguments, layout, _names(x[0])
    padded = as_tensor(x, "x")
    if padded.dim() not in (1, 2, 3):
        shape = tuple(padded.shape)
        raise ValueError(
            f"data: expected sequences of shape (n, T, d), or one of shape (T, d); got {shape}. Reshape x, or pass a "
            "list of sequences."
        )
    one = padded.dim() < 3
    layout = Layout("one" if one else "padded", padded.dim() == 1)
    padded = padded.unsqueeze(-1) if layout.flat else padded
    arguments = {"x": padded.unsqueeze(0) if one else padded, **entries}
    if one:
        for name, value in entries.items():
            arguments[name] = _one_covariate(value, str(name), len(padded))
    return arguments, layout, _names(x)


def _names(table: Any) -> tuple[str, ...] | None:
    return tuple(map(str, table.columns)) if hasattr(table, "columns") else None


def _columned(parts: list[Tensor]) -> list[Tensor]:
    """Sequences whose steps have an axis of columns."""
    return [part.unsqueeze(-1) if part.dim() == 1 else part for part in parts]


CONCATENATED = (
    "data: expected a list of sequences; got all of their steps one after the other, and their lengths. "
    "Pass numpy.split(x, numpy.cumsum(lengths)[:-1])."
)


def concatenated(x: Tensor, lengths: Tensor) -> bool:
    """Whether these look like sequences one after the other and their lengths, as hmmlearn has them."""
    lengths = lengths.reshape(-1) if lengths.dim() == 2 and lengths.shape[1] == 1 else lengths
    whole = lengths.dim() == 1 and bool((lengths == lengths.round()).all()) and bool((lengths > 0).all())
    return whole and len(lengths) < len(x) and int(lengths.sum()) == len(x)


def pad(parts: list[Tensor], filler: float | None = None, steps: int | None = None) -> Tensor:
    """Sequences side by side, later steps a repetition of the last one, or a number.

    Raises:
        ValueError: One is empty, or steps differ in shape.
    """
    empty = [i for i, part in enumerate(parts) if not len(part)]
    if empty:
        raise ValueError(
            f"data: expected every sequence to have at least one step; got none in sequence {empty[0]}. Leave it out."
        )
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        if len(parts) == 2 and concatenated(*parts):
            raise ValueError(CONCATENATED)
        odd = next(i for i, part in enumerate(parts) if part.shape[1:] != parts[0].shape[1:])
        raise ValueError(
            f"data: expected sequences whose steps have one shape; got {sorted(shapes)}, the first other one in "
            f"sequence {odd}. Give all the same columns."
        )
    longest = max(steps or 0, *(len(part) for part in parts))
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    out = []
    for part in parts:
        last = part[-1:] if filler is None else torch.full_like(part[-1:], filler)
        out.append(torch.cat([part, last.expand(longest - len(part), *part.shape[1:])]).to(dtype))
    return torch.stack(out)


def _padded_covariate(values: Any, name: str, lengths: list[int]) -> Tensor:
    parts = [as_tensor(part, f"{name}[{i}]") for i, part in enumerate(values)]
    got = [len(part) for part in parts]
    if got != lengths:
        wrong = next((i for i, (a, b) in enumerate(zip(got, lengths, strict=False)) if a != b), None)
        what = f"{len(got)} sequences" if wrong is None else f"{got[wrong]} steps in sequence {wrong}"
        want = f"{len(lengths)}" if wrong is None else f"{lengths[wrong]}"
        raise ValueError(f"data: expected {name} to have the steps of x, {want}; got {what}. Cut or fill it.")
    return pad(_columned(parts))


def _one_covariate(value: Any, name: str, steps: int) -> Any:
    """What stands beside one series: with its number of steps, it gets an axis of sequences too."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    tensor = as_tensor(value, name)
    if name == LENGTHS or not tensor.dim() or len(tensor) != steps or tensor.dim() > 2:
        return tensor
    return (tensor.unsqueeze(-1) if tensor.dim() == 1 else tensor).unsqueeze(0)


def check_lengths(lengths: Any, x: Tensor) -> Tensor:
    """Lengths as whole numbers.

    Raises:
        ValueError: There is not one for each sequence, or one is no whole number, below 1, or beyond the steps of `x`.
    """
    n, steps = x.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.shape != (n,):
        if isinstance(lengths, Tensor) and n == 1 and concatenated(x[0], lengths):
            raise ValueError(CONCATENATED)
        got = f"shape {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else repr(lengths)
        raise ValueError(f"data: expected {LENGTHS} of shape ({n},), one for each sequence; got {got}.")
    for wrong, expected, hint in (
        (lengths != lengths.round() if lengths.is_floating_point() else lengths < lengths, "whole numbers", "Round it"),
        (lengths < 1, "at least 1", "Leave that sequence out"),
        (lengths > steps, f"at most {steps}, the steps that x has", "Correct it, or pad x"),
    ):
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise ValueError(
                f"data: expected {LENGTHS} to be {expected}; got {lengths[i].item():g} for sequence {i}. {hint}."
            )
    return lengths.long()


def real_steps(lengths: Tensor, steps: int) -> Tensor:
    """Which steps are no padding, shape (n, T)."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)


def along_steps(value: Any, x: Tensor) -> bool:
    """Whether an argument has a value for every step of the sequences `x`, (n, T, ...)."""
    return isinstance(value, Tensor) and value.dim() > 1 and value.shape[:2] == x.shape[:2]


def fill_padding(value: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """An array over steps whose padding repeats the last step, which no law finds odd; any other array as it is."""
    if value.dim() < 2 or tuple(value.shape[:2]) != (len(lengths), steps) or bool((lengths == steps).all()):
        return value
    index = torch.arange(steps, device=value.device).minimum(lengths.to(value.device).unsqueeze(-1) - 1)
    index = index.reshape(*index.shape, *[1] * (value.dim() - 2)).expand(value.shape)
    return value.gather(1, index)
