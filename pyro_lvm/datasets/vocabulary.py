"""Words as integers; words never or rarely seen stand for what they look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Vocabulary", "word_classes"]

# English endings that tell parts of speech, longest first: after T. Brants (2000), TnT, and A. Ratnaparkhi (1996).
ENDINGS = (
    *("ment", "ness", "able", "ible", "tion", "less"),
    *("ing", "ity", "ous", "ive", "ful", "est", "ers", "ist", "ism", "ies"),
    *("ed", "ly", "al", "er", "ic", "ss", "us", "s", "y"),
)
ANY_WORD = "<word>"


def word_classes(word: str) -> tuple[str, ...]:
    """What a word looks like, from the most telling class to the one of all words.

    Example:
        >>> from pyro_lvm.datasets import word_classes
        >>> word_classes("Sailing"), word_classes("1904")
        (('<Word-ing>', '<Word>', '<word>'), ('<number>', '<word>'))
    """
    if not any(letter.isalnum() for letter in word):
        return "<symbol>", ANY_WORD
    if "@" in word or "://" in word or word.lower().startswith("www."):
        return "<address>", ANY_WORD
    if any(letter.isdigit() for letter in word):
        kind = "<mixed>" if any(letter.isalpha() for letter in word) else "<number>"
        return kind, ANY_WORD
    shape = "WORD" if word.isupper() and len(word) > 1 else "Word" if word[0].isupper() else "word"
    if "-" in word[1:-1]:
        shape = f"{shape}-{shape}"
    lower = word.lower()
    ending = next((e for e in ENDINGS if lower.endswith(e) and len(lower) > len(e) + 1), None)
    classes = (f"<{shape}-{ending}>", f"<{shape}>") if ending else (f"<{shape}>",)
    return tuple(dict.fromkeys((*classes, ANY_WORD)))


class Vocabulary:
    """The symbols of a corpus: its frequent words, and classes for all other words, unseen ones among them.

    A word seen fewer than `min_count` times stands for the most telling of its `word_classes` to which at least
    `min_count` such words belong, so that what is learned of rare words holds for unknown ones.

    Args:
        sentences: Sentences, each a sequence of words.
        min_count: How often a word must be seen to have a symbol of its own, >= 1. With 1 no training word is rare,
            and nothing is learned for unknown words.
        lower: Whether words that differ in their capitals only have one symbol; classes look at capitals always.

    Raises:
        ValueError: There are no words, or min_count < 1.

    References:
        T. Brants (2000), TnT: a statistical part-of-speech tagger, ANLP, section 2.3.

    Example:
        >>> from pyro_lvm.datasets import Vocabulary, tagged_sentences
        >>> vocabulary = Vocabulary(tagged_sentences().words)
        >>> vocabulary.decode(vocabulary.encode(["The", "sailor", "was", "whistling"]))
        ['the', 'sailor', 'was', '<word-ing>']
    """

    def __init__(self, sentences: Iterable[Sequence[str]], min_count: int = 2, lower: bool = True) -> None:
        if min_count < 1:
            raise ValueError(f"Vocabulary: expected min_count >= 1; got {min_count}.")
        self.min_count, self.lower = min_count, lower
        tokens = Counter(word for sentence in sentences for word in sentence)
        if not tokens:
            raise ValueError("Vocabulary: expected sentences with words; got none.")
        counts: Counter[str] = Counter()
        for word, times in tokens.items():
            counts[self._key(word)] += times
        frequent = [word for word, times in counts.items() if times >= min_count]
        rare = [word for word in tokens if counts[self._key(word)] < min_count]
        members = Counter(name for word in rare for name in word_classes(word))
        classes = [name for name, size in sorted(members.items()) if size >= min_count and name != ANY_WORD]
        self.symbols: tuple[str, ...] = (ANY_WORD, *classes, *sorted(frequent))
        self.num_classes = 1 + len(classes)
        # a word spelled like a class is a word
        self._number = {name: i for i, name in enumerate(self.symbols) if i >= self.num_classes}
        self._class = {name: i for i, name in enumerate(self.symbols[: self.num_classes])}

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, word: str) -> bool:
        """Whether a word has a symbol of its own."""
        return self._key(word) in self._number

    def number(self, word: str) -> int:
        """The symbol of a word, from 0 to the number of symbols less one."""
        own = self._number.get(self._key(word))
        if own is not None:
            return own
        return next(self._class[name] for name in word_classes(word) if name in self._class)

    def encode(self, sentence: Sequence[str]) -> Tensor:
        """The symbols of a sentence, integers, shape (T,)."""
        return torch.tensor([self.number(word) for word in sentence], dtype=torch.long)

    def decode(self, symbols: Tensor | Sequence[int]) -> list[str]:
        """Words for the symbols of one sentence, shape (T,); classes as they are written."""
        return [self.symbols[int(symbol)] for symbol in torch.as_tensor(symbols).flatten()]

    def _key(self, word: str) -> str:
        return word.lower() if self.lower else word
