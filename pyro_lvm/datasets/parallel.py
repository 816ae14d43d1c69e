"""Sentence pairs of two languages as padded matrices of words."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

__all__ = ["ParallelCorpus", "parallel_corpus", "phrases"]

UNKNOWN = "<unk>"

Sentence = str | Sequence[str]


@dataclass(frozen=True, eq=False)
class ParallelCorpus(Mapping[str, Tensor]):
    """Sentence pairs, target sentences given source sentences: the arguments of word alignment models, by name.

    The entries are `x`, target words, shape (n, J_max); `source`, source words, shape (n, I_max); `lengths` and
    `source_lengths`, numbers of words, shape (n,). Sentences are padded with zeros on the right.

    Attributes:
        arguments: Those entries.
        source_words: The source vocabulary: word w is `source_words[w]`.
        target_words: The target vocabulary.
        links: Gold alignments, sets of (source position, target position) from 0; empty if there are none.
        lower: Whether words were turned to lower case.
    """

    arguments: dict[str, Tensor]
    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    links: tuple[frozenset[tuple[int, int]], ...] = ()
    lower: bool = False

    def __getitem__(self, name: str) -> Tensor:
        return self.arguments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arguments)

    def __len__(self) -> int:
        return len(self.arguments)

    @property
    def num_pairs(self) -> int:
        """Number of sentence pairs n."""
        return len(self.arguments["x"])

    def take(self, rows: slice) -> ParallelCorpus:
        """Some of the pairs, in the same vocabularies and equally padded."""
        arguments = {name: tensor[rows] for name, tensor in self.arguments.items()}
        return ParallelCorpus(arguments, self.source_words, self.target_words, self.links[rows], self.lower)

    def swapped(self) -> ParallelCorpus:
        """The same pairs with source and target exchanged."""
        names = {"x": "source", "source": "x", "lengths": "source_lengths", "source_lengths": "lengths"}
        return ParallelCorpus(
            {name: self.arguments[other] for name, other in names.items()},
            self.target_words,
            self.source_words,
            tuple(frozenset((target, source) for source, target in links) for links in self.links),
            self.lower,
        )

    def sentences(self, row: int) -> tuple[list[str], list[str]]:
        """The words of one pair, source and target."""
        texts = []
        for words, name, length in (
            (self.source_words, "source", "source_lengths"),
            (self.target_words, "x", "lengths"),
        ):
            size = int(self.arguments[length][row])
            texts.append([words[w] for w in self.arguments[name][row, :size].long().tolist()])
        return texts[0], texts[1]

    def encode(self, pairs: Iterable[tuple[Sentence, Sentence]]) -> ParallelCorpus:
        """Other sentence pairs in the same vocabularies.

        Args:
            pairs: Source and target sentences, as for `parallel_corpus`.

        Raises:
            ValueError: A sentence is empty, or has a word that is not in the vocabulary (and no `<unk>` is).
        """
        sources, targets = _split(pairs, self.lower)
        arguments = {
            **_matrix("x", "lengths", targets, self.target_words, "target"),
            **_matrix("source", "source_lengths", sources, self.source_words, "source"),
        }
        return ParallelCorpus(arguments, self.source_words, self.target_words, (), self.lower)


def parallel_corpus(
    pairs: Iterable[tuple[Sentence, Sentence]],
    *,
    lower: bool = True,
    min_count: int = 1,
    links: Iterable[Iterable[tuple[int, int]]] = (),
) -> ParallelCorpus:
    """Sentence pairs as the arguments of word alignment models.

    Args:
        pairs: Source and target sentences, each a list of words, or a text whose words are separated by spaces.
        lower: Turn words to lower case.
        min_count: Words that occur less often become the word `<unk>`.
        links: Gold alignments, one collection of (source position, target position) from 0 for each pair.

    Returns:
        The corpus; vocabularies are in alphabetical order.

    Raises:
        ValueError: There are no pairs, a sentence is empty, or links point beyond their sentences.

    Example:
        >>> corpus = parallel_corpus([("the house", "la casa"), ("the green house", "la casa verde")])
        >>> corpus["x"]
        tensor([[1, 0, 0],
                [1, 0, 2]])
        >>> corpus.encode([("green", "verde")])["source"]
        tensor([[0]])
    """
    sources, targets = _split(pairs, lower)
    gold = tuple(frozenset(each) for each in links)
    if gold and len(gold) != len(sources):
        raise ValueError(
            f"parallel_corpus: expected links for each of the {len(sources)} pairs; got {len(gold)}. Leave links out, "
            "or give empty sets."
        )
    for i, (source, target, each) in enumerate(zip(sources, targets, gold, strict=False)):
        wrong = [link for link in sorted(each) if not (0 <= link[0] < len(source) and 0 <= link[1] < len(target))]
        if wrong:
            raise ValueError(
                f"parallel_corpus: expected links within {len(source)} source and {len(target)} target words; got "
                f"{wrong[0]} in pair {i}. Count positions from 0, the source first."
            )
    words = [_vocabulary(sentences, min_count) for sentences in (sources, targets)]
    corpus = ParallelCorpus({}, words[0], words[1], gold, lower).encode(zip(sources, targets, strict=True))
    return ParallelCorpus(corpus.arguments, words[0], words[1], gold, lower)


def phrases() -> ParallelCorpus:
    """A small corpus of English and Spanish sentences with gold alignments, written for this package.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.datasets.phrases().sentences(0)
        (['the', 'house', 'is', 'green'], ['la', 'casa', 'es', 'verde'])
    """
    with resources.files("pyro_lvm.datasets").joinpath("phrases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    links = [[tuple(map(int, link.split("-"))) for link in row["links"].split()] for row in rows]
    return parallel_corpus([(row["english"], row["spanish"]) for row in rows], links=links)  # type: ignore[arg-type]


def _split(pairs: Iterable[tuple[Sentence, Sentence]], lower: bool) -> tuple[list[list[str]], list[list[str]]]:
    """Source and target sentences as lists of words."""
    sides: tuple[list[list[str]], list[list[str]]] = ([], [])
    for i, pair in enumerate(pairs):
        for side, sentence, name in zip(sides, pair, ("source", "target"), strict=True):
            words = sentence.split() if isinstance(sentence, str) else list(sentence)
            if not words:
                raise ValueError(
                    f"parallel_corpus: expected sentences of at least one word; got an empty {name} sentence in pair "
                    f"{i}. Leave the pair out."
                )
            side.append([word.lower() for word in words] if lower else words)
    if not sides[0]:
        raise ValueError("parallel_corpus: expected at least one sentence pair; got none.")
    return sides


def _vocabulary(sentences: list[list[str]], min_count: int) -> tuple[str, ...]:
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = sorted(word for word, count in counts.items() if count >= min_count and word != UNKNOWN)
    return tuple(kept if len(kept) == len(counts) else [*kept, UNKNOWN])


def _matrix(
    name: str, lengths_name: str, sentences: list[list[str]], words: tuple[str, ...], side: str
) -> dict[str, Tensor]:
    """Sentences as a matrix of words, and their lengths."""
    index = {word: i for i, word in enumerate(words)}
    rows = []
    for i, sentence in enumerate(sentences):
        found = [index.get(word, index.get(UNKNOWN, -1)) for word in sentence]
        if -1 in found:
            raise ValueError(
                f"ParallelCorpus.encode: expected words of the {side} vocabulary; got {sentence[found.index(-1)]!r} in "
                f"pair {i}. Leave the pair out, or make the corpus with min_count=2, which knows '{UNKNOWN}'."
            )
        rows.append(torch.tensor(found))
    return {
        name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        lengths_name: torch.tensor([len(row) for row in rows]),
    }
