"""Codes with other priors than Laplace's: modes, supports, mean fields, against plain loops and enumeration."""

import itertools
import math

import pytest
import torch

from pyro_lvm.ops.code_prior import CodePrior
from pyro_lvm.ops.laplace_codes import LaplaceCodes
from pyro_lvm.ops.spike_and_slab_codes import SpikeAndSlabCodes, best_supports, mean_field, pursue
from pyro_lvm.ops.student_t_codes import StudentTCodes
from pyro_lvm.ops.supports import every_support, given_support, support_scores


def problem(n: int, d: int, k: int, noise: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """Products and their squares, of rows of a few columns that are far from orthogonal."""
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(d, k, dtype=torch.float64), dim=0)
    codes = torch.randn(n, k, dtype=torch.float64) * (torch.rand(n, k) < 0.25)
    x = codes @ weight.mT + noise * torch.randn(n, d, dtype=torch.float64)
    return x @ weight / noise**2, weight.mT @ weight / noise**2


def spikes(k: int, pi: float = 0.25, noise: float = 0.15) -> SpikeAndSlabCodes:
    ones = torch.ones(k, dtype=torch.float64)
    return SpikeAndSlabCodes(pi * ones, math.sqrt(2 * math.pi / (1 + noise**-2)) * ones, 0 * ones, ones)


def tails(k: int) -> StudentTCodes:
    return StudentTCodes(torch.linspace(0.5, 6, k, dtype=torch.float64))


PRIORS = {"laplace": lambda k: LaplaceCodes(), "student-t": tails, "spike-and-slab": spikes}


def plain(prior: CodePrior, product: torch.Tensor, gram: torch.Tensor, support: tuple) -> float:
    """What a support of one row costs, by the inverse of its own matrix."""
    on = [j for j, inside in enumerate(support) if inside]
    inner = gram[on][:, on] + torch.eye(len(on), dtype=torch.float64)
    explained = 0.5 * product[on] @ torch.linalg.inv(inner) @ product[on] if on else 0.0
    return float(sum(prior.cost[on]) - explained)


@pytest.mark.parametrize("each", [False, True], ids=["one gram", "one a row"])
@pytest.mark.parametrize("name", PRIORS)
def test_a_sweep_never_raises_the_objective(name: str, each: bool) -> None:
    products, gram = problem(60, 5, 12)
    gram = gram.repeat(60, 1, 1) if each else gram
    prior = PRIORS[name](12)
    codes = torch.randn(60, 12, dtype=torch.float64)
    before = prior.objective(products, gram, codes)
    for _ in range(6):
        prior.improve(products, gram, codes, 1)
        after = prior.objective(products, gram, codes)
        assert bool((after <= before + 1e-9).all())
        before = after
    best = prior.solved(products, gram, 1e-9)
    moved = best.clone()
    prior.improve(products, gram, moved, 1)
    ours, theirs = (prior.objective(products, gram, codes) for codes in (best, moved))
    assert bool((ours <= 0).all())  # that of zeros
    assert bool((theirs <= ours + 1e-9).all())
    torch.testing.assert_close(moved[theirs > ours - 1e-6], best[theirs > ours - 1e-6], atol=1e-5, rtol=0)


@pytest.mark.parametrize("each", [False, True], ids=["one gram", "one a row"])
def test_modes_of_students_prior_have_no_slope(each: bool) -> None:
    products, gram = problem(60, 5, 12)
    gram = gram.repeat(60, 1, 1) if each else gram
    prior = tails(12)
    codes = prior.solved(products, gram, 1e-6).requires_grad_()
    law = torch.distributions.StudentT(prior.freedom, 0.0, 1.0)
    own = gram if each else gram.expand(60, 12, 12)
    loss = 0.5 * torch.einsum("ni,nij,nj", codes, own, codes) - (products * codes).sum() - law.log_prob(codes).sum()
    (slope,) = torch.autograd.grad(loss, codes)
    assert float(slope.abs().max()) < 1e-6


@pytest.mark.parametrize("each", [False, True], ids=["one gram", "one a row"])
def test_few_spikes_are_the_best_of_all_supports(each: bool) -> None:
    products, gram = problem(30, 4, 6)
    prior = spikes(6)
    codes = prior.solved(products, gram.repeat(30, 1, 1) if each else gram, 0.0)
    found = prior.objective(products, gram, codes)
    for row, product in enumerate(products):
        best = min(plain(prior, product, gram, s) for s in itertools.product([0, 1], repeat=6))
        assert float(found[row]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("each", [False, True], ids=["one gram", "one a row"])
def test_no_entry_that_comes_goes_or_is_swapped_makes_many_spikes_better(each: bool) -> None:
    products, gram = problem(12, 6, 14)
    prior = spikes(14)
    start = pursue(products, gram, prior.cost)
    codes = best_supports(products, gram.repeat(12, 1, 1) if each else gram, prior.cost, start)
    found = prior.objective(products, gram, codes)
    assert float((prior.objective(products, gram, start) - found).max()) > 1
    for row, product in enumerate(products):
        support = [bool(value != 0) for value in codes[row]]
        assert float(found[row]) == pytest.approx(plain(prior, product, gram, support), abs=1e-9)
        for i, j in itertools.combinations_with_replacement(range(14), 2):
            if i == j or support[i] != support[j]:
                other = [inside != (place in (i, j)) for place, inside in enumerate(support)]
                assert plain(prior, product, gram, other) > float(found[row]) - 1e-8


def test_pursuit_of_one_gram_is_that_of_one_a_row() -> None:
    products, gram = problem(40, 6, 14)
    cost = spikes(14).cost
    torch.testing.assert_close(pursue(products, gram.repeat(40, 1, 1), cost), pursue(products, gram, cost))


def test_mean_field_is_exact_of_columns_that_do_not_meet() -> None:
    products, _ = problem(20, 5, 4)
    gram = torch.diag(torch.tensor([40.0, 2.0, 0.5, 0.0], dtype=torch.float64))
    products[:, 3] = 0
    odds = torch.tensor([-1.0, 0.5, -2.0, -3.0], dtype=torch.float64)
    probability, loc, scale = mean_field(products, gram, odds, torch.zeros_like(products))
    scores = support_scores(products, gram)
    every = every_support(products, 4)
    exact = (scores.fit - scores.volume + every @ odds).softmax(-1) @ every
    torch.testing.assert_close(probability, exact)
    torch.testing.assert_close(loc, products / (1 + gram.diagonal()))
    torch.testing.assert_close(scale, (1 + gram.diagonal()).rsqrt().expand(20, 4))


def test_mean_field_is_where_no_entry_raises_the_bound() -> None:
    """The evidence bound of independent laws, by hand, has no slope."""
    products, gram = problem(10, 5, 7, noise=0.5)
    odds = torch.full((7,), -1.0, dtype=torch.float64)
    found = mean_field(products, gram, odds, torch.zeros_like(products))
    probability, loc, scale = (part.clone().requires_grad_() for part in found)
    mean = probability * loc
    second = probability * (loc.square() + scale.square())
    quadratic = 0.5 * torch.einsum("ni,ij,nj->n", mean, gram, mean)
    quadratic = quadratic + 0.5 * ((second - mean.square()) @ gram.diagonal())
    prior = probability * odds - 0.5 * second
    entropy = probability * (scale.log() + 0.5) + torch.distributions.Bernoulli(probability).entropy()
    bound = (products * mean).sum() - quadratic.sum() + prior.sum() + entropy.sum()
    for slope in torch.autograd.grad(bound, (probability, loc, scale)):
        assert float((slope * found[0] * (1 - found[0])).abs().max()) < 1e-6


def test_supports_are_scored_by_their_own_matrices() -> None:
    products, gram = problem(5, 4, 3)
    one, each = support_scores(products, gram), support_scores(products, gram.repeat(5, 1, 1))
    torch.testing.assert_close(one, each)
    for number, support in enumerate(every_support(products, 3)):
        on = support.bool()
        assert number == sum(2**j for j in range(3) if on[j])
        inner = gram[on][:, on] + torch.eye(int(on.sum()), dtype=torch.float64)
        expected = torch.linalg.solve(inner, products[:, on].mT).mT
        torch.testing.assert_close(one.fit[:, number], 0.5 * (expected * products[:, on]).sum(-1))
        torch.testing.assert_close(one.volume[:, number], 0.5 * torch.linalg.slogdet(inner)[1].expand(5))
        loc, factor = given_support(products, gram, support.expand(5, 3))
        torch.testing.assert_close(loc[:, on], expected)
        torch.testing.assert_close((factor @ factor.mT)[0][on][:, on], inner)


@pytest.mark.parametrize("name", ["student-t", "spike-and-slab"])
def test_rows_that_are_no_numbers_stay_so(name: str) -> None:
    products, gram = problem(6, 6, 14)
    products[2, 1] = torch.nan
    codes = PRIORS[name](14).solved(products, gram, 1e-6)
    assert bool(codes[2].isnan().all())
    assert bool(codes[[0, 1, 3, 4, 5]].isfinite().all())


def test_slabs_are_about_zero() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="expected codes whose slab is about zero"):
        SpikeAndSlabCodes(0.5 * one, one, one, one)
