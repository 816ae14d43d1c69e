"""The benchmark of tagging on the embedded sentences."""

import gzip
from collections import Counter

import pytest
import torch

from pyro_lvm.datasets import tagged_sentences


@pytest.fixture
def benchmark(script, monkeypatch):
    module = script("tagging")
    limits = {"STRENGTHS": (30.0,), "STEPS": 2, "RUNS": 1, "ONE_IN": 5, "STATES": 4, "RESTARTS": 2, "EPOCHS": 3}
    for name, value in limits.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def folder(tmp_path):
    corpus = tagged_sentences()
    (tmp_path / "pos_ud_ewt").mkdir()
    for part, start in (("train", 0), ("dev", 1), ("test", 2)):
        chosen = corpus[start::3]
        sentences = [
            "".join(f"{word}\t{tag}\t_\n" for word, tag in zip(words, tags, strict=True))
            for words, tags in zip(chosen.words, chosen.tags, strict=True)
        ]
        with gzip.open(tmp_path / "pos_ud_ewt" / f"en_ewt_{part}.tsv.gz", "wt") as file:
            file.write("\n".join(sentences))
    return tmp_path


def test_it_prints_its_tables(benchmark, folder, monkeypatch, capsys):
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    assert benchmark.main([]) == 0
    out = capsys.readouterr().out
    assert "all tags known: 0." in out
    assert "8 of 41 sentences tagged" in out
    assert "4 states, 2 starts" in out


def test_words_seen_keep_their_symbols_and_all_probability_is_spread(benchmark):
    corpus = tagged_sentences()
    few = benchmark.Few(corpus[:20])
    symbols = few.encode(["dog", "Zebras"])
    assert int(symbols[0]) == len(few.frequent) + few.seen.number("dog")
    assert int(symbols[1]) < few.frequent.num_classes
    vocabulary = benchmark.Vocabulary(corpus.words)
    spread = few.spread(Counter(word for words in corpus.words for word in words), vocabulary)
    torch.testing.assert_close(spread.sum(1).double(), torch.ones(len(corpus.tag_names)).double())


def test_without_data_it_says_what_to_set(benchmark, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_LVM_DATA", raising=False)
    assert benchmark.main([]) == 2
    assert "Set PYRO_LVM_DATA to a folder" in capsys.readouterr().err
