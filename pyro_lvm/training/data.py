"""Data is checked and converted once, here; everything behind it may assume tensors of one device.

They are finite, but for the missing values (NaN) of a model that handles them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.choices import MODELS
from pyro_lvm.training.tensors import as_tensor

__all__ = ["Arguments", "as_arguments", "as_labels", "unpacked"]

WEIGHTS = "sample_weights"


@dataclass
class Arguments:
    """A model's arguments: tensors whose leading axis is the rows, and values passed on as they are.

    Attributes:
        names: Column names of the data argument, if it had any.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] | None = None

    @property
    def values(self) -> list[Any]:
        """All arguments, positional ones first."""
        return [*self.args, *self.kwargs.values()]

    @property
    def main(self) -> Tensor:
        """The data argument: the positional one, or "x", or the first tensor."""
        if "x" in self.kwargs:
            return self.kwargs["x"]
        return next(v for v in self.unweighted().values if isinstance(v, Tensor))

    @property
    def weights(self) -> Tensor:
        """How many rows each row counts for, shape (n,); ones unless `sample_weights` were given."""
        given = self.kwargs.get(WEIGHTS)
        return torch.ones(self.num_rows, device=self.main.device) if given is None else given

    def unweighted(self) -> Arguments:
        """The same arguments, every row counting once."""
        return Arguments(self.args, {k: v for k, v in self.kwargs.items() if k != WEIGHTS}, self.names)

    @property
    def num_rows(self) -> int:
        """Length of the leading axis."""
        return len(self.main)

    def map(self, function: Callable[[Tensor], Tensor]) -> Arguments:
        """The same arguments with every tensor replaced."""
        return Arguments(
            tuple(function(a) if isinstance(a, Tensor) else a for a in self.args),
            {k: function(v) if isinstance(v, Tensor) else v for k, v in self.kwargs.items()},
            self.names,
        )

    def rows(self, index: Any) -> Arguments:
        """The arguments of some rows."""
        n = self.num_rows
        return self.map(lambda t: t[index] if t.dim() and len(t) == n else t)

    def batches(self, batch_size: int | None) -> Iterator[Arguments]:
        """Shuffled batches; all rows in their order if `batch_size` is None."""
        if batch_size is None or batch_size >= self.num_rows:
            yield self
            return
        order = torch.randperm(self.num_rows)
        for start in range(0, self.num_rows, batch_size):
            yield self.rows(order[start : start + batch_size].to(self.main.device))

    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes, enough to run the program once on zeros."""

        def one(value: Any) -> Any:
            if isinstance(value, Tensor):
                return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
            return {"value": value}

        return {"args": [one(a) for a in self.args], "kwargs": {k: one(v) for k, v in self.kwargs.items()}}

    @staticmethod
    def rows_of(shapes: dict[str, Any]) -> int | None:
        """Number of rows of the arguments that had these `shapes`."""
        every = [*shapes["args"], *shapes["kwargs"].values()]
        return next((v["shape"][0] for v in every if v.get("shape")), None)

    @classmethod
    def zeros(cls, shapes: dict[str, Any], num_rows: int | None = None) -> Arguments:
        """Arguments of zeros from `shapes`, optionally with another number of rows."""

        def one(value: dict[str, Any]) -> Any:
            if "value" in value:
                return value["value"]
            shape = list(value["shape"])
            if num_rows is not None and shape and shape[0] == rows:
                shape[0] = num_rows
            return torch.zeros(shape, dtype=getattr(torch, value["dtype"]))

        rows = cls.rows_of(shapes)
        return cls(tuple(one(a) for a in shapes["args"]), {k: one(v) for k, v in shapes["kwargs"].items()})


def as_arguments(data: Any, model: Any = None, device: torch.device | None = None) -> Arguments:
    """Convert what a user may pass to a model's arguments.

    Args:
        data: An array, tensor, DataFrame or nested list; a dict of arguments; a `torch.utils.data.Dataset`; or a list
            of sequences of unequal length, which becomes `x` (padded with zeros) and `lengths`.
        model: The model, whose floating-point type the data take on.
        device: Where to put tensors.

    Raises:
        ValueError: The data are empty, not numeric, not finite, or not what the model takes.
        TypeError: The data are of an unknown kind.
    """
    if isinstance(data, Arguments):
        arguments = data
    elif isinstance(data, Mapping):
        entries = {str(k): _dict_value(k, v) for k, v in data.items()}
        arguments = Arguments(kwargs=entries, names=_column_names(data.get("x")))
    elif isinstance(data, Dataset):
        arguments = _from_dataset(data)
    elif _is_ragged(data):
        arguments = _padded([as_tensor(s, f"sequence {i}") for i, s in enumerate(data)])
    else:
        tensor = as_tensor(data, "x")
        if not isinstance(data, Tensor) and not tensor.is_floating_point() and not tensor.is_complex():
            tensor = tensor.to(torch.get_default_dtype())
        arguments = Arguments((tensor,), names=_column_names(data))
    if not any(isinstance(v, Tensor) for v in arguments.values):
        raise ValueError("data: expected at least one array; got none. Pass x, or a dict with an entry 'x'.")
    _check_names(arguments, model)
    _check_values(arguments, model)
    return _convert(arguments, model, device)


def _column_names(table: Any) -> tuple[str, ...] | None:
    return tuple(map(str, table.columns)) if hasattr(table, "columns") else None


def _dict_value(name: Any, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return as_tensor(value, str(name))


def _from_dataset(data: Any) -> Arguments:
    if isinstance(data, TensorDataset):
        return Arguments(tuple(data.tensors))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(f"data: expected rows that are all in memory; got {type(data).__name__}, a stream of them.")
    if len(data) == 0:
        raise ValueError("data: expected at least one row; got an empty Dataset.")
    return as_arguments(unpacked(default_collate([data[i] for i in range(len(data))])))


def unpacked(batch: Any) -> Any:
    """What `as_arguments` takes, from what a Dataset or a DataLoader gives: a tuple of it is several arguments."""
    if not isinstance(batch, (list, tuple)):
        return batch
    return Arguments(tuple(as_tensor(part, f"argument {i}" if i else "x") for i, part in enumerate(batch)))


def _is_ragged(data: Any) -> bool:
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)) or not len(data):
        return False
    lengths = {len(s) if hasattr(s, "__len__") and not isinstance(s, str) and np.ndim(s) else None for s in data}
    return None not in lengths and len(lengths) > 1


def _padded(sequences: list[Tensor]) -> Arguments:
    shapes = {tuple(s.shape[1:]) for s in sequences}
    if len(shapes) > 1:
        raise ValueError(f"data: expected sequences whose steps have one shape; got {sorted(shapes)}.")
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return Arguments(kwargs={"x": padded, "lengths": torch.tensor([len(s) for s in sequences])})


def _check_names(arguments: Arguments, model: Any) -> None:
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
    unnamed = len(arguments.args)
    got = [*own[:unnamed], *(f"one without a name ({i})" for i in range(len(own), unnamed)), *arguments.kwargs]
    name = type(model).__name__ if isinstance(model, torch.nn.Module) else getattr(model, "__name__", "the model")
    hint = "Pass a dict with those names."
    if "lengths" in arguments.kwargs and "lengths" not in own:
        hint = "It takes no list of sequences of unequal length: pass one table."
    raise ValueError(f"data: expected the arguments of {name}, {', '.join(own)}; got {', '.join(got)}. {hint}")


def _check_values(arguments: Arguments, model: Any) -> None:
    named = {**{f"argument {i}" if i else "x": v for i, v in enumerate(arguments.args)}, **arguments.kwargs}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 0 or value.dim() == 0:
            raise ValueError(f"data: expected {name} to have at least one row; got shape {tuple(value.shape)}.")
        if value.is_complex():
            raise ValueError(f"data: expected {name} to be real; got {value.dtype}.")
        if value.is_floating_point():
            missing = getattr(model, "handles_missing", False) and value is arguments.main
            _check_finite(name, value, torch.isinf(value) if missing else ~torch.isfinite(value))
    if arguments.kwargs.get(WEIGHTS) is not None:
        _check_weights(arguments.kwargs[WEIGHTS], arguments.num_rows)


def _check_finite(name: str, value: Tensor, bad: Tensor) -> None:
    if not bool(bad.any()):
        return
    where = tuple(bad.nonzero()[0].tolist())
    nan = bool(torch.isnan(value[where]))
    count = int((torch.isnan(value) if nan else torch.isinf(value)).sum())
    place = f"row {where[0]}" + (f", column {where[1]}" if len(where) > 1 else "")
    rows = f"{'those' if count > 1 else 'that'} row{'s' if count > 1 else ''}"
    takers = [n for n, kind in MODELS.items() if nan and getattr(kind, "handles_missing", False)]
    instead = f", or use a model that takes missing values: {', '.join(takers)}" if takers else ""
    raise ValueError(
        f"data: expected {name} to be finite; got {count} {'missing value (NaN)' if nan else 'infinite value'}"
        f"{'s' if count > 1 else ''}, the first at {place}. Drop or impute {rows}{instead}."
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


def _convert(arguments: Arguments, model: Any, device: torch.device | None) -> Arguments:
    dtype = None
    if isinstance(model, torch.nn.Module) and not isinstance(model, LatentVariableModel):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    ours = isinstance(model, LatentVariableModel)
    main, weights = arguments.main, arguments.kwargs.get(WEIGHTS)

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = tensor.to(dtype) if dtype is not None else tensor
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor = tensor.float()
        elif tensor is weights or (ours and tensor is main):
            tensor = tensor.to(torch.get_default_dtype())
        return tensor.to(device) if device is not None else tensor

    arguments = arguments.map(one)
    if weights is not None and arguments.main.is_floating_point():
        arguments.kwargs[WEIGHTS] = arguments.kwargs[WEIGHTS].to(arguments.main.dtype)
    return arguments


def as_labels(value: Any, name: str) -> Tensor:
    """Convert known values of a site; unlike data, they may have NaN for unknown ones."""
    return as_tensor(value, name)
