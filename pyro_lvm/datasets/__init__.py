"""Small data sets that travel with the package, and what turns words into numbers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from pyro_lvm.datasets.bars import Bars, bars
from pyro_lvm.datasets.corpora import TaggedCorpus, read_tagged, tagged_sentences
from pyro_lvm.datasets.parallel import ParallelCorpus, parallel_corpus, phrases
from pyro_lvm.datasets.vocabulary import Vocabulary, word_classes

__all__ = [
    "NAMES",
    "Bars",
    "Data",
    "ParallelCorpus",
    "TaggedCorpus",
    "Vocabulary",
    "bars",
    "load",
    "parallel_corpus",
    "phrases",
    "read_tagged",
    "tagged_sentences",
    "word_classes",
]


LABELS = {
    "faithful": None,
    "iris": "species",
    "wine": "cultivar",
    "digits234": "digit",
    "visits": None,
    "opinions": None,
    "voters": None,
    "geyser": None,
    "eruptions": None,
    "earthquakes": None,
    "seatbelts": None,
}
NAMES = tuple(LABELS)


@dataclass(frozen=True)
class Data:
    """A table of numbers.

    Attributes:
        name: The data set's name.
        x: Rows, shape (n, d), float64.
        columns: Column names.
        labels: Known classes, shape (n,), or None.
    """

    name: str
    x: Tensor
    columns: tuple[str, ...]
    labels: Tensor | None = None


def load(name: str) -> Data:
    """Load an embedded data set.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: There is no such data set.

    Example:
        >>> import pyro_lvm as lvm
        >>> lvm.datasets.load("faithful").x.shape
        torch.Size([272, 2])
    """
    if name not in LABELS:
        raise ValueError(f"datasets.load: expected one of {', '.join(NAMES)}; got {name!r}.")
    with resources.files(__name__).joinpath(f"{name}.csv").open() as file:
        columns = file.readline().strip().split(",")
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", ndmin=2))
    label = LABELS[name]
    if label is None:
        return Data(name, table, tuple(columns))
    position = columns.index(label)
    keep = [i for i in range(len(columns)) if i != position]
    return Data(name, table[:, keep], tuple(columns[i] for i in keep), table[:, position].long())
