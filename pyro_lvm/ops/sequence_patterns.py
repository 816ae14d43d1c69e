"""Sequences by what is known of them: which entries are, which sequences are alike in it, and where it changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_lvm.ops.missing import has_gaps, patterns

__all__ = ["SequencePatterns", "sequence_patterns"]

_SEEN = WeakTensorKeyDictionary()  # every step asks about the same sequences


class SequencePatterns(NamedTuple):
    """What is known of n sequences of T steps.

    Attributes:
        known: Which entries are known, by pattern, shape (T, g, d).
        group: The pattern of each sequence, shape (n,); None if all have one.
        inside: Which steps of each pattern are no padding, shape (T, g).
        changes: The steps at which another selection of entries begins to be known, 0 first.
        complete: Whether everything is known.
    """

    known: Tensor
    group: Tensor | None
    inside: Tensor
    changes: list[int]
    complete: bool

    def by_sequence(self, values: Tensor, n: int) -> Tensor:
        """Values of patterns, shape (T, g, ...), as those of sequences, (T, n, ...)."""
        if self.group is None:
            return values.expand(values.shape[0], n, *values.shape[2:])
        return values[:, self.group]


def sequence_patterns(x: Tensor, lengths: Tensor | None = None) -> SequencePatterns:
    """Find the patterns of sequences; looked up until `x` is written to.

    Args:
        x: Shape (n, T, d), NaN where missing.
        lengths: Steps of each sequence, shape (n,); later ones count as missing.
    """
    if x.is_inference():
        return _found(x, lengths)
    version, before, answer = _SEEN.get(x, (None, None, None))
    if answer is None or version != x._version or not _alike(before, lengths):
        answer = _found(x.detach(), lengths)
        _SEEN[x] = x._version, None if lengths is None else lengths.clone(), answer
    return answer


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _found(x: Tensor, lengths: Tensor | None) -> SequencePatterns:
    n, steps, d = x.shape
    ragged = lengths is not None and bool((lengths < steps).any())
    everywhere = torch.ones(steps, 1, d, dtype=torch.bool, device=x.device)
    if not ragged and not has_gaps(x):
        return SequencePatterns(everywhere, None, everywhere[..., 0], [0], True)
    known = ~x.isnan()
    inside = everywhere[:, 0, 0].expand(n, steps)
    if ragged:
        inside = torch.arange(steps, device=x.device) < lengths.unsqueeze(-1)  # type: ignore[union-attr]
        known = known & inside.unsqueeze(-1)
    keys = torch.cat([known.flatten(1), inside], 1)
    table, group, _ = patterns(keys) if n > 1 else (keys, None, None)
    known = table[:, :-steps].unflatten(1, (steps, d)).transpose(0, 1)
    inside = table[:, -steps:].mT
    moved = (known[1:] != known[:-1]).any(-1).any(-1)
    changes = [0, *(moved.nonzero().flatten() + 1).tolist()]
    return SequencePatterns(known, None if len(table) == 1 else group, inside, changes, bool(known.all()))
