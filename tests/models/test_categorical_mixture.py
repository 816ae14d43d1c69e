"""Special to latent class analysis."""

import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.models import CategoricalMixture


@pytest.fixture
def answers():
    return lvm.datasets.load("opinions").x


def test_missing_answers_may_be_nan_or_minus_one(answers):
    gaps = torch.rand(answers.shape) < 0.2
    nan, minus = answers.clone(), answers.clone()
    nan[gaps], minus[gaps] = torch.nan, -1
    first, second = (lvm.fit(CategoricalMixture(3), x, seed=0, max_epochs=20, progress=False) for x in (nan, minus))
    for name, value in first.params.items():
        assert torch.equal(value, second.params[name])
    assert first.score(nan) == second.score(minus) == first.score(minus)


def test_free_parameters_are_counted_without_padding(answers):
    fit = lvm.fit(CategoricalMixture(3), answers, seed=0, max_epochs=3, progress=False)
    free = 2 + 3 * (4 * 6 + 1)
    assert fit.aic(answers) + 2 * fit.log_likelihood(answers).sum() == pytest.approx(2 * free)


def test_questions_of_one_length_are_one_site(answers, local):
    model = CategoricalMixture(2)
    model.initialize(answers[:, :4])
    assert [group.site for group in model.groups] == ["x"]
    assert model.probs.shape == (2, 4, 7)
    assert model.num_categories == [7, 7, 7, 7]


@pytest.mark.parametrize("num_categories", [8, [8, 7, 9, 7, 2]])
def test_answers_that_nobody_gave(answers, num_categories):
    fit = lvm.fit(CategoricalMixture(2, num_categories), answers, seed=0, max_epochs=3, progress=False)
    unseen = answers[:1].clone()
    unseen[0, 0] = 7
    assert fit.log_likelihood(unseen).item() < fit.log_likelihood(answers[:1]).item()
    narrow = lvm.fit(CategoricalMixture(2), answers, seed=0, max_epochs=3, progress=False)
    with pytest.raises(ValueError, match=r"expected answers 0 to 6 in column 0; got 7 in row 0. Recode"):
        narrow.score(unseen)


MISTAKES = {
    "half an answer": ([[0.0, 1.0], [0.5, 2.0], [1.0, 0.0]], "answers 0 to 1 in column 0; got 0.5 in row 1"),
    "negative": ([[0.0, 1.0], [1.0, -2.0], [1.0, 0.0]], "answers 0 to 1 in column 1; got -2 in row 1"),
    "a number": ([[0.0, 1.0], [1.0, 70000.0], [1.0, 0.0]], "answers coded 0, 1, 2, ... in column 1; got 70000"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    rows, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        lvm.fit(CategoricalMixture(2), rows, progress=False)


@pytest.mark.parametrize("num_categories", [0, [3, 0]])
def test_numbers_of_answers_out_of_range(num_categories):
    with pytest.raises(ValueError, match="expected num_categories >= 1"):
        CategoricalMixture(2, num_categories)


def test_classes_are_recovered():
    probs = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.2, 0.6]], [[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]]).repeat(1, 3, 1)
    z = (torch.rand(4000) < 0.3).long()
    x = torch.distributions.Categorical(probs[z]).sample().double()
    fit = lvm.fit(CategoricalMixture(2), x, seed=0, progress=False)
    order = fit.params["weights"].argsort(descending=True)
    torch.testing.assert_close(fit.params["probs"][order].float(), probs, atol=0.05, rtol=0)
