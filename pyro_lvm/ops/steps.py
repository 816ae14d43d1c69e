"""Sequences: their lengths and weights checked, their steps as rows of one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.ops.plain_error import PlainError

__all__ = ["Steps", "check_lengths", "checked_covariates"]


def check_lengths(caller: str, lengths: Any, rows: int, steps: int | None = None) -> None:
    """Raise a ValueError unless there is a whole number of steps, at least one, for each sequence.

    Args:
        caller: Who asks, for errors.
        lengths: What was given.
        rows: Number of sequences.
        steps: Number of steps in the data, padding included; None if it is not known.

    Raises:
        ValueError: The lengths are of another kind or shape, or one is out of range.
    """
    lengths = torch.as_tensor(lengths)
    expected = f"{caller}: expected lengths, a whole number >= 1 for each of {rows} sequences"
    if lengths.shape != (rows,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"{expected}; got {lengths.dtype} of shape {tuple(lengths.shape)}. Pass one integer for each.")
    short = (lengths < 1).nonzero().flatten().tolist()
    if short:
        raise ValueError(
            f"{expected}; got {int(lengths[short[0]])} for sequence {short[0]}. Leave empty sequences out."
        )
    long = [] if steps is None else (lengths > steps).nonzero().flatten().tolist()
    if long:
        raise ValueError(
            f"{expected}, at most the {steps} steps of x; got {int(lengths[long[0]])} for sequence {long[0]}. "
            "Pad x, or correct the length."
        )


def checked_covariates(caller: str, covariates: Any, rows: Any, width: int | None) -> Tensor:
    """Covariates of sequences, of the right shape.

    Args:
        caller: Who asks, for errors.
        covariates: What was given.
        rows: Numbers of sequences and of steps; None where it is not known.
        width: Number of covariates; None if it is not known.

    Raises:
        ValueError: There are none, or they have another shape.
    """
    wanted = (*rows, width)
    shown = ", ".join(str(size or name) for size, name in zip(wanted, "nTq", strict=True))
    if covariates is None:
        raise PlainError(
            f"{caller}: expected covariates of shape ({shown}); got none. "
            "Pass a dict of both, {'x': x, 'covariates': u}; to sample(n, covariates=u)."
        )
    covariates = torch.as_tensor(covariates)
    shape = tuple(covariates.shape)
    if len(shape) != 3 or any(want not in (None, got) for want, got in zip(wanted, shape, strict=True)):
        raise PlainError(
            f"{caller}: expected covariates of shape ({shown}); got {shape}. Give one row of them for each step of x."
        )
    return covariates


@dataclass(frozen=True)
class Steps:
    """Steps of which something is known, of sequences that count.

    Attributes:
        rows: Shape (m, d), NaN where missing.
        counts: How often each counts, shape (m,); at least m in all, so that what a start adds does not drown them.
        progress: How far into its sequence each stands, shape (m,), in [0, 1).
        used: Which steps of the sequences these are, shape (n, T).
    """

    rows: Tensor
    counts: Tensor
    progress: Tensor
    used: Tensor

    @classmethod
    def of(cls, caller: str, x: Tensor, lengths: Tensor | None, sample_weights: Tensor | None) -> Steps:
        """Take sequences apart.

        Args:
            caller: Who asks, for errors.
            x: Shape (n, T, d), NaN where missing.
            lengths: Number of steps of every sequence, shape (n,); T if None.
            sample_weights: How often each sequence counts, shape (n,); once if None.

        Raises:
            ValueError: Lengths or weights do not fit the sequences.
        """
        n, total = x.shape[:2]
        if lengths is not None:
            check_lengths(caller, lengths, n, total)
        weight = x.new_ones(n) if sample_weights is None else sample_weights.to(x)
        if weight.shape != (n,) or not bool((weight >= 0).all() & (weight.sum() > 0)):
            raise ValueError(
                f"{caller}: expected sample_weights of shape ({n},), one a sequence, >= 0 and not all 0; got shape "
                f"{tuple(weight.shape)}. Drop or repeat entries."
            )
        length = x.new_full((n,), total) if lengths is None else lengths.to(x)
        time = torch.arange(total).to(x)
        used = (time < length.unsqueeze(-1)) & (weight > 0).unsqueeze(-1) & ~x.isnan().all(-1)
        counts = weight.unsqueeze(-1).expand(n, total)[used]
        counts = counts * (len(counts) / counts.sum()).clamp_min(1)
        return cls(x[used], counts, (time / length.unsqueeze(-1))[used], used)
