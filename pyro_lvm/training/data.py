"""Data is checked and converted once, here; everything behind it may assume tensors of one device.

They are finite, but for the missing values (NaN) of a model that handles them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.argument_checks import check_names, check_values
from pyro_lvm.training.arguments import WEIGHTS, Arguments
from pyro_lvm.training.sequences import (
    LENGTHS,
    Layout,
    are_sequences,
    check_lengths,
    fill_padding,
    read_sequences,
    wanted,
)
from pyro_lvm.training.tensors import as_tensor

__all__ = ["Arguments", "as_arguments", "as_labels", "from_dataset", "in_order", "unpacked"]


def as_arguments(data: Any, model: Any = None, device: torch.device | None = None) -> Arguments:
    """Convert what a user may pass to a model's arguments.

    Args:
        data: An array, tensor, DataFrame or nested list; a dict of arguments; a `torch.utils.data.Dataset`; or a list
            of sequences, which becomes `x` (padded) and `lengths`. To a model of `sequences` an array of two axes or
            one is a single series.
        model: The model, whose floating-point type the data take on.
        device: Where to put tensors.

    Raises:
        ValueError: The data are empty, not numeric, not finite, or not what the model takes.
        TypeError: The data are of an unknown kind.
    """
    if isinstance(data, (Dataset, DataLoader)):
        data = from_dataset(data, model)
    if isinstance(data, Arguments):
        arguments = _as_sequences(data, model)
    elif wanted(data, model):
        entries, layout, names = read_sequences(data, model)
        arguments = Arguments((), {str(k): _dict_value(k, v) for k, v in entries.items()}, names, layout)
    elif isinstance(data, Mapping):
        entries = {str(k): _dict_value(k, v) for k, v in data.items()}
        arguments = Arguments(kwargs=entries, names=_column_names(data.get("x")))
    else:
        tensor = as_tensor(data, "x")
        if not isinstance(data, Tensor) and not tensor.is_floating_point() and not tensor.is_complex():
            tensor = tensor.to(torch.get_default_dtype())
        arguments = Arguments((tensor,), names=_column_names(data))
    if not any(isinstance(v, Tensor) for v in arguments.values):
        raise ValueError("data: expected at least one array; got none. Pass x, or a dict with an entry 'x'.")
    check_names(arguments, model)
    arguments = _without_padding(arguments)
    check_values(arguments, model)
    return _convert(arguments, model, device)


def _column_names(table: Any) -> tuple[str, ...] | None:
    return tuple(map(str, table.columns)) if hasattr(table, "columns") else None


def _dict_value(name: Any, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return as_tensor(value, str(name))


def from_dataset(data: Any, model: Any) -> Any:
    """What `as_arguments` takes, from a `torch.utils.data.Dataset`, which is read whole.

    Raises:
        ValueError: There are no rows.
        TypeError: It is a stream.
    """
    if isinstance(data, TensorDataset):
        return Arguments(tuple(data.tensors))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"data: expected rows that are all in memory; got {type(data).__name__}, a stream of them. "
            "All are needed at once here: concatenate its batches."
        )
    if len(data) == 0:
        raise ValueError("data: expected at least one row; got an empty Dataset.")
    items = [data[i] for i in range(len(data))]
    _check_items(items)
    if getattr(model, "sequences", False) and not isinstance(items[0], (tuple, Mapping)) and are_sequences(items):
        return items
    try:
        return unpacked(default_collate(items))
    except RuntimeError:  # items of unequal lengths
        if not isinstance(items[0], Mapping):
            raise
        return {name: [item[name] for item in items] for name in items[0]}


def _check_items(items: list[Any]) -> None:
    """Raise a ValueError unless items that are dicts have the same entries, none of them None."""
    keys = {key: i for i, item in enumerate(items) if isinstance(item, Mapping) for key in item}
    for key, there in keys.items():
        for i, item in enumerate(items):
            if not isinstance(item, Mapping) or item.get(key) is None:
                got = "None" if isinstance(item, Mapping) and key in item else "none"
                has = f", and one in item {there}" if got == "none" else ""
                raise ValueError(
                    f"data: expected every item of the Dataset to have a value of '{key}'; got {got} in item {i}{has}. "
                    "Write -1 (in whole numbers) or NaN where a label is unknown."
                )


def _as_sequences(arguments: Arguments, model: Any) -> Arguments:
    """Arguments of a model of sequences, all by name."""
    if not getattr(model, "sequences", False) or arguments.layout is not None:
        return arguments
    names = inspect.signature(model.forward).parameters
    given = {**dict(zip(names, arguments.args, strict=False)), **arguments.kwargs}
    x = given.get("x")
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = tuple(x.shape) if isinstance(x, Tensor) else "none"
        raise ValueError(f"data: expected x of shape (n, T, d), n sequences of T steps; got {got}. Reshape it.")
    return replace(arguments, args=(), kwargs=given, layout=Layout("padded"))


def _without_padding(arguments: Arguments) -> Arguments:
    """The same arguments with nothing odd in the padding of sequences, their lengths checked."""
    lengths = arguments.kwargs.get(LENGTHS)
    if arguments.layout is None or lengths is None:
        return arguments
    lengths = check_lengths(lengths, arguments.main)
    steps = arguments.main.shape[1]
    arguments = arguments.map(lambda t: fill_padding(t, lengths, steps))
    arguments.kwargs[LENGTHS] = lengths
    return arguments


def unpacked(batch: Any) -> Any:
    """What `as_arguments` takes, from what a Dataset or a DataLoader gives: a tuple of it is several arguments."""
    if not isinstance(batch, (list, tuple)):
        return batch
    return Arguments(tuple(as_tensor(part, f"argument {i}" if i else "x") for i, part in enumerate(batch)))


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


def as_labels(value: Any, name: str, arguments: Arguments) -> Tensor:
    """Convert known values of a site; unlike data, they may have NaN for unknown ones."""
    if arguments.layout is None or (isinstance(value, Tensor) and value.dim() > 1 and len(value) == arguments.num_rows):
        return as_tensor(value, name)
    return arguments.layout.labels(value, name, arguments.main.shape[1])


def in_order(table: Any, columns: tuple[str, ...]) -> Any:
    """A table's columns in the order of another one; of a list of tables, each; what has no columns as it is.

    Raises:
        ValueError: Columns are missing, or there are others.
    """
    if isinstance(table, list) and table and all(hasattr(part, "columns") for part in table):
        return [in_order(part, columns) for part in table]
    if not hasattr(table, "columns"):
        return table
    named = {str(name): name for name in table.columns}
    if set(named) != set(columns) or len(named) != len(table.columns):
        raise ValueError(f"data: expected columns {', '.join(columns)}; got {', '.join(named)}. Rename or drop some.")
    return table if tuple(named) == columns else table[[named[name] for name in columns]]
