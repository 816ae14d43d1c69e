"""Alignment error rates, symmetrisation and pictures on worked examples."""

import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics.alignment import (
    alignment_error_rate,
    alignment_plot,
    alignment_scores,
    read_links,
    symmetrise,
    transpose,
)

# two directions of a pair of four source and five target words
FORWARD = read_links("0-0 1-1 2-3 3-4 2-2")
BACKWARD = read_links("0-0 1-1 1-2 3-3 0-4")


def test_the_error_rate_of_a_worked_example():
    sure = [read_links("0-0 1-2"), read_links("0-0")]
    possible = [read_links("0-0 1-2 2-1"), read_links("0-0 1-1")]
    found = [read_links("0-0 2-1 3-3"), read_links("1-1")]
    # |A| = 4, |S| = 3, |A and S| = 1, |A and P| = 3
    scores = alignment_scores(found, sure, possible)
    assert scores.precision == pytest.approx(3 / 4)
    assert scores.recall == pytest.approx(1 / 3)
    assert scores.error_rate == pytest.approx(1 - 4 / 7)
    assert alignment_error_rate(sure, sure, possible) == 0
    assert alignment_error_rate([set(), set()], sure, possible) == 1


def test_sure_links_are_possible():
    assert alignment_error_rate([{(0, 0)}], [{(0, 0)}], [{(1, 1)}]) == 0


def test_without_possible_links_it_is_one_minus_the_harmonic_mean():
    scores = alignment_scores([read_links("0-0 1-1 2-2")], [read_links("0-0 1-1 3-3 4-4")])
    harmonic = 2 * scores.precision * scores.recall / (scores.precision + scores.recall)
    assert scores.error_rate == pytest.approx(1 - harmonic)


@pytest.mark.parametrize(
    ("method", "links"),
    [
        ("intersection", "0-0 1-1"),
        ("union", "0-0 1-1 1-2 2-2 2-3 3-3 3-4 0-4"),
        # 1-2 and 2-2 touch 1-1: 1-2 is looked at first and takes target 2, then 2-2 still aligns source 2;
        # 2-3 touches and takes target 3, 3-3 takes source 3, and 3-4 target 4; 0-4 touches nothing
        ("grow-diag", "0-0 1-1 1-2 2-2 2-3 3-3 3-4"),
        ("grow-diag-final", "0-0 1-1 1-2 2-2 2-3 3-3 3-4"),
        ("grow-diag-final-and", "0-0 1-1 1-2 2-2 2-3 3-3 3-4"),
    ],
)
def test_symmetrisation_of_a_worked_example(method, links):
    assert symmetrise([FORWARD], [BACKWARD], method) == [read_links(links)]


def test_final_steps_differ():
    forward, backward = read_links("0-0 3-3"), read_links("0-0 0-5 4-6")
    # nothing is next to 0-0; 3-3 and 4-6 align two free words, 0-5 only one
    assert symmetrise([forward], [backward], "grow-diag") == [read_links("0-0")]
    assert symmetrise([forward], [backward], "grow-diag-final-and") == [read_links("0-0 3-3 4-6")]
    assert symmetrise([forward], [backward], "grow-diag-final") == [read_links("0-0 0-5 3-3 4-6")]


def test_methods_are_nested_in_random_alignments():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        forward, backward = (
            {tuple(link) for link in torch.randint(6, (7, 2), generator=generator).tolist()} for _ in range(2)
        )
        order = ("intersection", "grow-diag", "grow-diag-final-and", "grow-diag-final", "union")
        found = [symmetrise([forward], [backward], method)[0] for method in order]
        assert found[0] <= found[1] <= found[2] <= found[4]
        assert found[1] <= found[3] <= found[4]
        swapped = symmetrise([transpose(backward)], [transpose(forward)], "union")[0]
        assert transpose(swapped) == found[4]


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected method to be one of intersection, union, grow-diag"):
        symmetrise([set()], [set()], "both")
    with pytest.raises(ValueError, match="both directions of the same sentence pairs; got 1 and 2"):
        symmetrise([set()], [set(), set()])
    with pytest.raises(ValueError, match="1 predicted, 2 sure and 2 possible"):
        alignment_error_rate([set()], [set(), set()])
    with pytest.raises(ValueError, match="expected some links; got none"):
        alignment_error_rate([set()], [set()])


def test_the_picture_shows_words_probabilities_and_gold_links():
    corpus = lvm.datasets.phrases()
    source, target = corpus.sentences(1)
    figure = alignment_plot(source, target, torch.eye(5), corpus.links[1])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == source
    assert [label.get_text() for label in ax.get_yticklabels()] == target
    assert len(ax.collections[0].get_offsets()) == len(corpus.links[1])
    with pytest.raises(ValueError, match=r"of shape \(5, 5\), target by source words; got \(4, 4\)"):
        alignment_plot(source, target, torch.eye(4))
