"""Sentence pairs laid out for computing: in groups whose source sentences have one length."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Group", "Memory", "lay_out", "number_pairs"]

# Numbers in one table of a group, (pairs, target words, source words): it then stays in the processor's cache.
BUDGET = 1 << 18


@dataclass(frozen=True)
class Group:
    """Sentence pairs whose source sentences have one length I.

    Attributes:
        rows: Where the pairs stand in the corpus, shape (g,).
        source: Source words, the empty word first, shape (g, 1 + I).
        target: Target words, shape (g, J); anything after the end of a sentence.
        lengths: Number of target words, shape (g,).
        inside: Which target words are there, shape (g, J).
        cells: What `lay_out` was told about every target word beside every source word, shape (g, J, 1 + I).
    """

    rows: Int[Tensor, " g"]
    source: Int[Tensor, "g sources"]
    target: Int[Tensor, "g targets"]
    lengths: Int[Tensor, " g"]
    inside: Bool[Tensor, "g targets"]
    cells: Int[Tensor, "g targets sources"]

    @property
    def num_source_words(self) -> int:
        """I, the empty word not counted."""
        return self.source.shape[1] - 1


def lay_out(
    source: Int[Tensor, "n sources"],
    source_lengths: Int[Tensor, " n"],
    target: Int[Tensor, "n targets"],
    lengths: Int[Tensor, " n"],
    empty_word: int,
    find: Callable[[Tensor, Tensor], Tensor],
) -> list[Group]:
    """Group sentence pairs by length of the source sentence, those of similar target lengths together.

    Args:
        source: Source words, padded.
        source_lengths: Number of source words, >= 1.
        target: Target words, padded.
        lengths: Number of target words, >= 1.
        empty_word: What stands for the empty source word.
        find: From source and target words, broadcast against each other, to the entries of `Group.cells`.
    """
    order = torch.argsort(source_lengths * (lengths.max() + 1) + lengths, stable=True)
    groups = []
    for same in torch.split(order, torch.bincount(source_lengths).tolist()):
        while len(same):
            size = int(source_lengths[same[0]])
            # lengths ascend, so that the last of the pairs taken decides about the padding
            cells = torch.arange(1, len(same) + 1, device=same.device) * lengths[same] * (size + 1)
            rows, same = same.split([taken := max(1, int((cells <= BUDGET).sum())), len(same) - taken])
            steps = torch.arange(int(lengths[rows].max()), device=rows.device)
            inside = steps < lengths[rows].unsqueeze(-1)
            words = torch.where(inside, target[rows, : len(steps)], 0)
            filled = torch.cat([torch.full_like(source[rows, :1], empty_word), source[rows, :size]], 1)
            entries = find(filled.unsqueeze(1), words.unsqueeze(2))
            groups.append(Group(rows, filled, words, lengths[rows], inside, entries))
    return groups


def number_pairs(groups: list[Group]) -> tuple[Tensor, list[Group]]:
    """All different entries of `Group.cells`, ascending, and the groups with an entry's place among them instead."""
    cells = torch.cat([group.cells[group.inside].reshape(-1) for group in groups])
    keys, places = torch.unique(cells, return_inverse=True)
    numbered = []
    for group, part in zip(
        groups, places.split([int(g.inside.sum()) * g.source.shape[1] for g in groups]), strict=True
    ):
        entries = torch.zeros_like(group.cells)
        entries[group.inside] = part.reshape(-1, group.source.shape[1])
        numbered.append(replace(group, cells=entries))
    return keys, numbered


class Memory:
    """Keeps what was computed from certain tensors for as long as the same tensors, unchanged, are passed again."""

    def __init__(self) -> None:
        self._tensors: list[tuple[weakref.ref[Tensor], int]] = []
        self._found: Any = None

    def get(self, tensors: tuple[Tensor, ...], compute: Callable[[], Any]) -> Any:
        """What `compute` returns, or returned for these tensors the last time."""
        kept = [reference() for reference, _ in self._tensors]
        same = len(kept) == len(tensors) and all(a is b for a, b in zip(kept, tensors, strict=True))
        if not same or any(t._version != version for t, (_, version) in zip(tensors, self._tensors, strict=True)):
            self.put(tensors, compute())
        return self._found

    def put(self, tensors: tuple[Tensor, ...], found: Any) -> None:
        """Keep what was found for these tensors in place of what was kept."""
        self._found = found
        self._tensors = [(weakref.ref(tensor), tensor._version) for tensor in tensors]

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        return Memory()
