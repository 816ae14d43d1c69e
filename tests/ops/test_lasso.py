"""The lasso of many rows against scikit-learn's and against its conditions."""

import pytest
import torch
from sklearn.decomposition import sparse_encode

from pyro_lvm.ops.coordinate_descent import descend
from pyro_lvm.ops.dictionary import better_dictionary, unit_columns
from pyro_lvm.ops.lasso import lasso, soft, violation


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weight = unit_columns(torch.randn(12, 30, dtype=torch.float64) + 0.5)
    x = 2 * torch.randn(300, 12, dtype=torch.float64)
    return x, weight


def objective(x: torch.Tensor, weight: torch.Tensor, penalty: float, codes: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x - codes @ weight.mT).square().sum(-1) + penalty * codes.abs().sum(-1)


@pytest.mark.parametrize("penalty", [0.02, 0.5, 3.0])
def test_codes_meet_the_conditions(problem: tuple, penalty: float) -> None:
    x, weight = problem
    codes = lasso(x @ weight, weight.mT @ weight, penalty)
    slopes = (x - codes @ weight.mT) @ weight  # from the rows themselves
    assert float((slopes.abs() - penalty).max()) <= 1e-6
    used = codes != 0
    assert float((slopes - penalty * codes.sign())[used].abs().max()) <= 1e-6
    assert bool((codes == 0).any())


@pytest.mark.parametrize("algorithm", ["lasso_lars", "lasso_cd"])
def test_codes_are_those_of_scikit_learn(problem: tuple, algorithm: str) -> None:
    x, weight = problem
    theirs = sparse_encode(x.numpy(), weight.mT.numpy(), algorithm=algorithm, alpha=0.7, max_iter=100_000)
    ours = lasso(x @ weight, weight.mT @ weight, 0.7)
    gain = objective(x, weight, 0.7, torch.from_numpy(theirs)) - objective(x, weight, 0.7, ours)
    assert float(gain.min()) >= -1e-12
    close = (ours - torch.from_numpy(theirs)).abs().amax(-1) < 1e-3  # lars drops out of some rows
    assert float(close.double().mean()) > 0.95


def test_violation_is_largest_subgradient(problem: tuple) -> None:
    x, weight = problem
    codes = torch.where(torch.rand_like(x @ weight) < 0.3, torch.randn_like(x @ weight), 0.0)
    found = violation(x @ weight, weight.mT @ weight, 0.4, codes)
    for row, code, value in zip(x[:20], codes[:20], found, strict=False):
        worst = 0.0
        for j, h in enumerate(code.tolist()):
            slope = float(weight[:, j] @ (row - weight @ code))
            worst = max(worst, abs(slope) - 0.4 if h == 0 else abs(slope - (0.4 if h > 0 else -0.4)))
        assert abs(worst / 0.4 - float(value)) < 1e-9


def test_every_row_its_own_columns(problem: tuple) -> None:
    x, weight = problem
    known = torch.rand_like(x) < 0.8
    known[0] = False  # nothing is known of it
    gram = torch.einsum("nd,dj,dk->njk", known.double(), weight, weight)
    products = (x * known) @ weight
    codes = lasso(products, gram, 0.3)
    assert float(violation(products, gram, 0.3, codes).max()) <= 1e-6
    assert float(codes[0].abs().max()) == 0
    for n in (1, 7, 200):
        own = weight[known[n]]
        alone = lasso((x[n : n + 1, known[n]]) @ own, own.mT @ own, 0.3)
        assert torch.allclose(alone[0], codes[n], atol=1e-8)


def test_columns_that_depend_on_each_other() -> None:
    torch.manual_seed(1)
    weight = unit_columns(torch.randn(4, 5, dtype=torch.float64))
    weight = torch.cat([weight, weight[:, :2], -weight[:, 2:3], torch.zeros(4, 1, dtype=torch.float64)], 1)
    x = torch.randn(50, 4, dtype=torch.float64)
    codes = lasso(x @ weight, weight.mT @ weight, 0.1)
    assert float(violation(x @ weight, weight.mT @ weight, 0.1, codes).max()) <= 1e-6


def test_a_sweep_never_raises_the_objective(problem: tuple) -> None:
    x, weight = problem
    codes = torch.randn(300, 30, dtype=torch.float64)
    before = objective(x, weight, 0.5, codes)
    for _ in range(5):
        moved = codes.mT.contiguous()
        descend((x @ weight).mT.contiguous(), weight.mT @ weight, soft(0.5), moved, 1)
        codes = moved.mT
        after = objective(x, weight, 0.5, codes)
        assert bool((after <= before + 1e-12).all())
        before = after


def test_single_precision_and_rows_that_are_no_numbers(problem: tuple) -> None:
    x, weight = (part.float() for part in problem)
    x[3, 0] = torch.nan
    codes = lasso(x @ weight, weight.mT @ weight, 0.5)
    assert bool(codes[3].isnan().all())
    rest = codes.isfinite().all(-1)
    assert int(rest.sum()) == 299
    assert float(violation((x @ weight)[rest], weight.mT @ weight, 0.5, codes[rest]).max()) < 1e-3


def test_penalty_is_positive() -> None:
    with pytest.raises(ValueError, match="lasso: expected a positive penalty; got 0"):
        lasso(torch.zeros(1, 1), torch.eye(1), 0.0)


def test_columns_of_a_dictionary_are_best_given_the_others(problem: tuple) -> None:
    x, weight = problem
    codes = lasso(x @ weight, weight.mT @ weight, 0.5)
    codes[:, 4] = 0
    second, cross = codes.mT @ codes, x.mT @ codes

    def misfit(dictionary: torch.Tensor) -> float:
        return float((x - codes @ dictionary.mT).square().sum())

    before = misfit(weight)
    once = better_dictionary(weight, second, cross, sweeps=1)
    assert misfit(once) < before
    assert torch.equal(once[:, 4], weight[:, 4])
    found = better_dictionary(weight, second, cross, sweeps=500)
    assert torch.allclose(found.norm(dim=0), torch.ones(30, dtype=torch.float64))
    least = misfit(found)
    for j in (0, 11, 29):  # turning a column to any side fits worse
        for _ in range(10):
            turned = found.clone()
            turned[:, j] = unit_columns(found[:, [j]] + 1e-2 * torch.randn(12, 1, dtype=torch.float64))[:, 0]
            assert misfit(turned) > least
