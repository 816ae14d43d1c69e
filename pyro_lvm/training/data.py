"""Data is checked and converted once, here; everything behind it may assume finite tensors of one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from pyro_lvm.protocols import LatentVariableModel

__all__ = ["Arguments", "as_arguments", "as_labels"]


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
        return next(v for v in self.values if isinstance(v, Tensor))

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

        every = [*shapes["args"], *shapes["kwargs"].values()]
        rows = next((v["shape"][0] for v in every if v.get("shape")), None)
        return cls(tuple(one(a) for a in shapes["args"]), {k: one(v) for k, v in shapes["kwargs"].items()})


def as_arguments(data: Any, model: Any = None, device: torch.device | None = None) -> Arguments:
    """Convert what a user may pass to a model's arguments.

    Args:
        data: An array, tensor, DataFrame or nested list; a dict of arguments; a `torch.utils.data.Dataset`; or a list
            of sequences of unequal length, which becomes `x` (padded with zeros) and `lengths`.
        model: The model, whose floating-point type the data take on.
        device: Where to put tensors.

    Raises:
        ValueError: The data are empty, not numeric, not finite, or their lengths differ.
        TypeError: The data are of an unknown kind.
    """
    if isinstance(data, Arguments):
        arguments = data
    elif isinstance(data, Mapping):
        arguments = Arguments(kwargs={str(k): _dict_value(k, v) for k, v in data.items()})
    elif isinstance(data, Dataset):
        arguments = _from_dataset(data)
    elif _is_ragged(data):
        sequences = [_tensor(s, f"sequence {i}") for i, s in enumerate(data)]
        padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        arguments = Arguments(kwargs={"x": padded, "lengths": torch.tensor([len(s) for s in sequences])})
    else:
        names = tuple(map(str, data.columns)) if hasattr(data, "columns") else None
        tensor = _tensor(data, "x")
        if not isinstance(data, Tensor) and not tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        arguments = Arguments((tensor,), names=names)
    if not any(isinstance(v, Tensor) for v in arguments.values):
        raise ValueError("data: expected at least one array; got none. Pass x, or a dict with an entry 'x'.")
    _check(arguments)
    return _convert(arguments, model, device)


def _dict_value(name: Any, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _tensor(value, str(name))


def _from_dataset(data: Any) -> Arguments:
    if isinstance(data, TensorDataset):
        return Arguments(tuple(data.tensors))
    if not hasattr(data, "__len__"):
        raise TypeError("data: expected a Dataset with a length; got an iterable one. Collect its rows first.")
    if len(data) == 0:
        raise ValueError("data: expected at least one row; got an empty Dataset.")
    rows = default_collate([data[i] for i in range(len(data))])
    if isinstance(rows, dict):
        return Arguments(kwargs=dict(rows))
    return Arguments(tuple(rows) if isinstance(rows, (list, tuple)) else (rows,))


def _is_ragged(data: Any) -> bool:
    if not isinstance(data, Sequence) or isinstance(data, (str, bytes)) or not len(data):
        return False
    lengths = {len(s) if hasattr(s, "__len__") and not isinstance(s, str) and np.ndim(s) else None for s in data}
    return None not in lengths and len(lengths) > 1


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if np.ma.isMaskedArray(value):
        value = np.ma.filled(value.astype(float), np.nan)  # masked means missing
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"data: expected {name} to be a table of numbers; got {type(value).__name__}.") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"data: expected {name} to hold numbers; got {_kind(array)}. Drop or encode columns that are not numeric."
        )
    if array.dtype == np.float16 or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C"))


def _kind(array: np.ndarray) -> str:
    if array.dtype.kind in "US":
        return "text"
    if array.dtype.kind == "O":
        kinds = sorted({type(v).__name__ for v in array.flat})
        return f"objects of type {', '.join(kinds[:3])}"
    return str(array.dtype)


def _check(arguments: Arguments) -> None:
    named = {**{f"argument {i}" if i else "x": v for i, v in enumerate(arguments.args)}, **arguments.kwargs}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 0 or value.dim() == 0:
            raise ValueError(f"data: expected {name} to have at least one row; got shape {tuple(value.shape)}.")
        if value.is_complex():
            raise ValueError(f"data: expected {name} to be real; got {value.dtype}.")
        if not value.is_floating_point():
            continue
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            missing = int(torch.isnan(value).sum())
            kind = "missing value (NaN)" if bool(torch.isnan(value[where])) else "infinite value"
            count = missing if "NaN" in kind else int(torch.isinf(value).sum())
            place = f"row {where[0]}" + (f", column {where[1]}" if len(where) > 1 else "")
            raise ValueError(
                f"data: expected {name} to be finite; got {count} {kind}{'s' if count > 1 else ''}, the first at "
                f"{place}. Drop or impute {'those' if count > 1 else 'that'} row{'s' if count > 1 else ''}."
            )


def _convert(arguments: Arguments, model: Any, device: torch.device | None) -> Arguments:
    dtype = None
    if isinstance(model, torch.nn.Module) and not isinstance(model, LatentVariableModel):
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    ours = isinstance(model, LatentVariableModel)
    main = arguments.main

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = tensor.to(dtype) if dtype is not None else tensor
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor = tensor.float()
        elif ours and tensor is main:
            tensor = tensor.to(torch.get_default_dtype())
        return tensor.to(device) if device is not None else tensor

    return arguments.map(one)


def as_labels(value: Any, name: str) -> Tensor:
    """Convert known values of a site; unlike data, they may have NaN for unknown ones."""
    return _tensor(value, name)
