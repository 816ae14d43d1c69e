"""Sparse tables of pairs, layouts of sentence pairs, scores of choices."""

import pytest
import torch

from pyro_lvm.ops.choices import fit_choice_scores
from pyro_lvm.ops.cooccurrences import Cooccurrences
from pyro_lvm.ops.sentence_pairs import Memory, lay_out, number_pairs


@pytest.fixture
def pairs():
    return Cooccurrences(torch.tensor([0, 2, 5, 6, 7]), num_rows=3, num_columns=4)  # rows 0: 0, 2; 1: 1, 2, 3


def test_pairs_are_found_and_others_share_a_value(pairs):
    rows, columns = torch.arange(3).unsqueeze(-1), torch.arange(4)
    assert pairs.find(rows, columns).tolist() == [[0, 5, 1, 5], [6, 2, 3, 4], [7, 7, 7, 7]]
    assert pairs.row_of_value.tolist() == [0, 0, 1, 1, 1, 0, 1, 2]
    assert pairs.shares.tolist() == [1, 1, 1, 1, 1, 2, 1, 4]


def test_rows_are_normalised(pairs):
    values = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 3.0])
    table = pairs.normalise(values)
    assert torch.allclose(table, torch.tensor([0.25, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 1.0]))
    assert torch.allclose(pairs.sum_rows(table), torch.ones(3))


def test_no_pair_at_all():
    empty = Cooccurrences(torch.zeros(0, dtype=torch.long), num_rows=2, num_columns=3)
    assert empty.find(torch.tensor([0, 1]), torch.tensor([2, 2])).tolist() == [0, 1]
    drawn = empty.sample(torch.ones(2), torch.zeros(300, dtype=torch.long))
    assert drawn.unique().tolist() == [0, 1, 2]


def test_draws_follow_the_values(pairs):
    values = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0])
    drawn = pairs.sample(values, torch.arange(3).repeat_interleave(4000).reshape(3, 4000))
    frequency = torch.stack([torch.bincount(row, minlength=4) for row in drawn]) / 4000
    exact = torch.tensor([[0.25, 0.125, 0.5, 0.125], [0.5, 0.0, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]])
    assert ((frequency - exact).abs() <= 4.5 * (exact * (1 - exact) / 4000).sqrt()).all()


def test_a_crowded_row_is_drawn_from_by_counting():
    crowded = Cooccurrences(torch.arange(999), num_rows=1, num_columns=1000)
    values = torch.zeros(1000)
    values[-1] = 1.0
    assert crowded.sample(values, torch.zeros(5, dtype=torch.long)).tolist() == [999] * 5


def test_groups_hold_every_word_once():
    sizes, lengths = torch.tensor([3, 1, 3, 2, 1]), torch.tensor([2, 4, 1, 3, 2])
    source, target = torch.arange(15).reshape(5, 3), torch.arange(20).reshape(5, 4)
    groups = lay_out(source, sizes, target, lengths, 99, lambda f, e: f * 100 + e)
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == [0, 1, 2, 3, 4]
    for group in groups:
        assert (group.source[:, 0] == 99).all()
        for at, row in enumerate(group.rows.tolist()):
            words = [99, *source[row, : sizes[row]].tolist()]
            expected = [[f * 100 + e for f in words] for e in target[row, : lengths[row]].tolist()]
            assert group.cells[at][group.inside[at]].tolist() == expected
    keys, numbered = number_pairs(groups)
    assert torch.equal(keys, keys.unique())
    for one, other in zip(groups, numbered, strict=True):
        assert torch.equal(keys[other.cells][one.inside], one.cells[one.inside])


def test_what_was_found_is_kept_while_tensors_are_the_same():
    memory, tensor, calls = Memory(), torch.zeros(3), []
    for _ in range(2):
        memory.get((tensor,), lambda: calls.append(1))
    assert len(calls) == 1
    memory.get((tensor.clone(),), lambda: calls.append(1))
    memory.get((tensor,), lambda: calls.append(1))
    tensor += 1
    memory.get((tensor,), lambda: calls.append(1))
    assert len(calls) == 4


def test_scores_of_choices_are_at_a_maximum():
    generator = torch.Generator().manual_seed(1)
    offered = torch.randint(3, (6, 5), generator=generator).double()
    offered[:, 0] = 1
    counts = torch.rand(5, generator=generator, dtype=torch.float64) + 0.5
    times = torch.rand(6, generator=generator, dtype=torch.float64)
    times = times / times.sum() * counts.sum()
    scores = fit_choice_scores(counts, offered, times, torch.full((5,), 0.2, dtype=torch.float64), 2000)
    logits = scores.log().requires_grad_()
    value = (counts * logits).sum() - (times * (offered @ logits.exp()).log()).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.abs().max() < 1e-8
    assert scores.sum().item() == pytest.approx(1.0)


def test_nothing_chosen_leaves_scores_as_they_are():
    start = torch.tensor([0.2, 0.8])
    assert torch.equal(fit_choice_scores(torch.zeros(2), torch.ones(1, 2), torch.zeros(1), start), start)
