"""Sentences whose words carry tags: an embedded sample, and files in two columns."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["TaggedCorpus", "read_tagged", "tagged_sentences"]


@dataclass(frozen=True)
class TaggedCorpus:
    """Sentences and a tag for every word.

    Attributes:
        words: The words, sentence by sentence.
        tags: Their tags.
        tag_names: All tags in the order of their numbers; alphabetical unless given.
    """

    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]
    tag_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for i, (words, tags) in enumerate(zip(self.words, self.tags, strict=True)):
            if len(words) != len(tags) or not words:
                raise ValueError(
                    f"TaggedCorpus: expected one tag a word and at least one word; got {len(tags)} tags for "
                    f"{len(words)} words in sentence {i}. Drop or mend it."
                )
        used = sorted({tag for tags in self.tags for tag in tags})
        unknown = sorted(set(used) - set(self.tag_names)) if self.tag_names else []
        if unknown:
            raise ValueError(f"TaggedCorpus: expected tags among {', '.join(self.tag_names)}; got {unknown[0]!r}.")
        object.__setattr__(self, "tag_names", self.tag_names or tuple(used))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, which: slice | Sequence[int]) -> TaggedCorpus:
        """Some of the sentences, with the same numbers for tags."""
        chosen = range(len(self))[which] if isinstance(which, slice) else which
        return TaggedCorpus(tuple(self.words[i] for i in chosen), tuple(self.tags[i] for i in chosen), self.tag_names)

    @property
    def states(self) -> list[Tensor]:
        """The tags as integers, one tensor (T,) a sentence."""
        number = {tag: i for i, tag in enumerate(self.tag_names)}
        return [torch.tensor([number[tag] for tag in tags]) for tags in self.tags]


def tagged_sentences() -> TaggedCorpus:
    """The embedded sample: 122 short English sentences with universal part-of-speech tags, written for this package.

    References:
        S. Petrov, D. Das, R. McDonald (2012), A universal part-of-speech tagset, LREC; tags as in version 2 of
        Universal Dependencies.

    Example:
        >>> from pyro_lvm import datasets
        >>> corpus = datasets.tagged_sentences()
        >>> " ".join(corpus.words[0]), corpus.tags[0][:3]
        ('The dog sleeps under the table .', ('DET', 'NOUN', 'VERB'))
    """
    text = resources.files("pyro_lvm.datasets").joinpath("sentences.txt").read_text(encoding="utf-8")
    return _corpus([[token.rsplit("/", 1) for token in line.split()] for line in text.splitlines()])


def read_tagged(path: str | Path, column: int = 1) -> TaggedCorpus:
    """Read a file of one word and its tags a line, parted by tabs, with an empty line after each sentence.

    Args:
        path: The file; `.gz` is unpacked.
        column: Which of the tags, counted from 1, the word being column 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has no such column, or the file has no sentence.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    sentences: list[list[list[str]]] = [[]]
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t")
            if cells == [""]:
                sentences.append([])
                continue
            if not 0 < column < len(cells):
                raise ValueError(
                    f"read_tagged: expected a tag in column {column} of {path.name}; line {number} has "
                    f"{len(cells)} columns. Pass column=."
                )
            sentences[-1].append([cells[0], cells[column]])
    kept = [sentence for sentence in sentences if sentence]
    if not kept:
        raise ValueError(f"read_tagged: expected sentences; {path.name} has none.")
    return _corpus(kept)


def _corpus(sentences: list[list[list[str]]]) -> TaggedCorpus:
    words, tags = (tuple(tuple(pair[i] for pair in sentence) for sentence in sentences) for i in (0, 1))
    return TaggedCorpus(words, tags)
