"""Parallel corpora: vocabularies, padding, other sentences in the same words."""

import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.datasets import parallel_corpus

PAIRS = [("The house", "la casa"), (["the", "green", "house"], ["la", "casa", "verde"]), ("green", "verde")]


def test_words_are_numbered_and_padded():
    corpus = parallel_corpus(PAIRS, links=[{(0, 0), (1, 1)}, {(1, 2)}, set()])
    assert corpus.source_words == ("green", "house", "the")
    assert corpus["source"].tolist() == [[2, 1, 0], [2, 0, 1], [0, 0, 0]]
    assert corpus["source_lengths"].tolist() == [2, 3, 1]
    assert corpus["x"].tolist() == [[1, 0, 0], [1, 0, 2], [2, 0, 0]]
    assert corpus.num_pairs == 3
    assert set(corpus) == {"x", "lengths", "source", "source_lengths"}
    assert corpus.sentences(1) == (["the", "green", "house"], ["la", "casa", "verde"])


def test_directions_are_swapped():
    corpus = parallel_corpus(PAIRS, links=[{(0, 0)}, {(1, 2)}, set()]).swapped()
    assert corpus.sentences(1) == (["la", "casa", "verde"], ["the", "green", "house"])
    assert corpus.links[1] == {(2, 1)}
    again = corpus.swapped().take(slice(1, 3))
    assert again.sentences(0) == (["the", "green", "house"], ["la", "casa", "verde"])
    assert again.links == (frozenset({(1, 2)}), frozenset())


def test_case_is_kept_if_asked_for():
    corpus = parallel_corpus(PAIRS, lower=False)
    assert "The" in corpus.source_words
    with pytest.raises(ValueError, match="expected words of the source vocabulary; got 'Green' in pair 0"):
        corpus.encode([("Green", "verde")])


def test_other_sentences_are_encoded_in_the_same_words():
    corpus = parallel_corpus(PAIRS)
    other = corpus.encode([("green GREEN", "verde"), ("house", "casa casa casa")])
    assert other.sentences(0) == (["green", "green"], ["verde"])
    assert other["lengths"].tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"target vocabulary; got 'perro' in pair 1.*min_count=2"):
        corpus.encode([("green", "verde"), ("house", "perro")])


def test_rare_words_are_unknown():
    corpus = parallel_corpus(PAIRS, min_count=2)
    assert corpus.source_words == ("green", "house", "the")
    corpus = parallel_corpus([*PAIRS, ("dog", "perro")], min_count=2)
    assert corpus.source_words[-1] == corpus.target_words[-1] == "<unk>"
    assert corpus.sentences(3) == (["<unk>"], ["<unk>"])
    assert corpus.encode([("cat", "gato")]).sentences(0) == (["<unk>"], ["<unk>"])


@pytest.mark.parametrize(
    ("pairs", "links", "message"),
    [
        ([], (), "expected at least one sentence pair; got none"),
        ([("a", "b"), ("a", " ")], (), "got an empty target sentence in pair 1. Leave the pair out"),
        ([([], ["b"])], (), "got an empty source sentence in pair 0"),
        ([("a", "b")], [{(0, 0)}, set()], "expected links for each of the 1 pairs; got 2"),
        ([("a b", "c")], [{(0, 1)}], r"within 2 source and 1 target words; got \(0, 1\) in pair 0"),
    ],
)
def test_bad_pairs(pairs, links, message):
    with pytest.raises(ValueError, match=message):
        parallel_corpus(pairs, links=links)


def test_the_embedded_phrases_have_links_for_nearly_all_words():
    corpus = lvm.datasets.phrases()
    assert corpus.num_pairs == len(corpus.links) == 44
    for row, links in enumerate(corpus.links):
        _, target = corpus.sentences(row)
        assert len({t for _, t in links}) >= len(target) - 2
    assert torch.equal(corpus["lengths"] > 0, torch.ones(44, dtype=torch.bool))
