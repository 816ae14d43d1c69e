"""Tagged sentences, and words as integers."""

import gzip

import pytest
import torch

from pyro_lvm.datasets import TaggedCorpus, Vocabulary, read_tagged, tagged_sentences, word_classes

UNIVERSAL = {
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
}


def test_the_embedded_sample():
    corpus = tagged_sentences()
    assert len(corpus) == 122
    assert sum(map(len, corpus.words)) == 1023
    assert set(corpus.tag_names) <= UNIVERSAL
    assert all(tags[-1] == "PUNCT" for tags in corpus.tags)
    assert len(set(corpus.words)) == len(corpus)


def test_states_number_the_tags_alike_in_every_part():
    corpus = tagged_sentences()
    part = corpus[[3, 0]]
    assert part.words == (corpus.words[3], corpus.words[0])
    assert torch.equal(part.states[1], corpus.states[0])
    assert [corpus.tag_names[i] for i in corpus[:1].states[0]] == list(corpus.tags[0])


def test_a_corpus_with_mistakes_is_refused():
    with pytest.raises(ValueError, match="got 1 tags for 2 words in sentence 1"):
        TaggedCorpus((("a",), ("b", "c")), (("X",), ("X",)))
    with pytest.raises(ValueError, match="expected tags among X; got 'Y'"):
        TaggedCorpus((("a",),), (("Y",),), ("X",))


@pytest.mark.parametrize("name", ["words.tsv", "words.tsv.gz"])
def test_files(tmp_path, name):
    path = tmp_path / name
    text = "Dogs\tNOUN\tNNS\nbark\tVERB\tVBP\n\n\n.\tPUNCT\t.\n"
    with gzip.open(path, "wt") if name.endswith("gz") else path.open("w") as file:
        file.write(text)
    corpus = read_tagged(path)
    assert corpus.words == (("Dogs", "bark"), (".",))
    assert corpus.tag_names == ("NOUN", "PUNCT", "VERB")
    assert read_tagged(path, column=2).tags[0] == ("NNS", "VBP")
    with pytest.raises(ValueError, match=r"expected a tag in column 3 of words\.tsv.*; line 1 has 3 columns"):
        read_tagged(path, column=3)


def test_a_file_without_sentences(tmp_path):
    (tmp_path / "empty.tsv").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.tsv has none"):
        read_tagged(tmp_path / "empty.tsv")


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("running", "<word-ing>"),
        ("Nations", "<Word-s>"),
        ("NASA", "<WORD>"),
        ("I", "<Word>"),
        ("ed", "<word>"),
        ("glass", "<word-ss>"),
        ("1904", "<number>"),
        ("1,000.5", "<number>"),
        ("3rd", "<mixed>"),
        ("...", "<symbol>"),
        ("-", "<symbol>"),
        ("someone@example.org", "<address>"),
        ("well-known", "<word-word>"),
        ("café", "<word>"),
    ],
)
def test_classes(word, first):
    classes = word_classes(word)
    assert classes[0] == first
    assert classes[-1] == "<word>"
    assert len(set(classes)) == len(classes)


def test_rare_and_unseen_words_share_symbols():
    sentences = [["The", "dog", "barked"], ["the", "dog", "jumped"], ["the", "sea"]]
    vocabulary = Vocabulary(sentences)
    assert vocabulary.symbols == ("<word>", "<word-ed>", "dog", "the")
    assert vocabulary.decode(vocabulary.encode(["THE", "barked", "climbed", "sea", "Zurich"])) == [
        "the",
        "<word-ed>",
        "<word-ed>",
        "<word>",
        "<word>",
    ]
    assert "The" in vocabulary
    assert "barked" not in vocabulary
    assert len(Vocabulary(sentences, min_count=1, lower=False)) == 1 + 6


def test_a_word_spelled_like_a_class_is_a_word():
    vocabulary = Vocabulary([["<word>", "<word>", "a"]])
    assert vocabulary.number("<word>") != vocabulary.number("never")


def test_bad_vocabularies():
    with pytest.raises(ValueError, match="expected sentences with words"):
        Vocabulary([[]])
    with pytest.raises(ValueError, match="min_count >= 1; got 0"):
        Vocabulary([["a"]], min_count=0)
