"""Updates of autocorrelations, starts, and gaps that are bridged for them."""

import pytest
import torch

from pyro_lvm.ops.dynamics_start import dynamics_start, filled_steps, rescaled
from pyro_lvm.ops.dynamics_updates import DynamicsStatistics, slow_update
from pyro_lvm.ops.kalman import kalman_filter
from pyro_lvm.ops.kalman_gains import LinearDynamics

NAN = torch.nan


def statistics(a, b, c, moves):
    diagonals = (torch.tensor(part, dtype=torch.float64).mul(moves).diag() for part in (a, c, b))
    later, cross, earlier = diagonals
    none = torch.zeros(())
    parts = (none, none, none, none, torch.tensor(float(moves)), later, cross, earlier, none, none, none, none)
    return DynamicsStatistics(*parts)


def test_autocorrelations_are_the_best_there_are() -> None:
    """Of moments that a chain of variance one has, and of others, where the cubic has several roots."""
    a, b, c = [1.0, 0.1, 2.0, 0.05, 0.9], [1.0, 0.2, 1.5, 0.05, 1.1], [0.7, 0.0, -1.6, 0.01, 0.99]
    found = slow_update(statistics(a, b, c, 50))
    grid = torch.linspace(-1, 1, 2_000_001, dtype=torch.float64)[1:-1]
    for i in range(5):
        left = 1 - grid.square()
        value = -0.5 * left.log() - 0.5 * (a[i] - 2 * c[i] * grid + b[i] * grid.square()) / left
        best = float(value.max())
        rate = float(found[i])
        ours = -0.5 * torch.log(torch.tensor(1 - rate**2)) - 0.5 * (a[i] - 2 * c[i] * rate + b[i] * rate**2) / (
            1 - rate**2
        )
        assert float(ours) == pytest.approx(best, abs=1e-6)
    assert float(found[0]) == pytest.approx(0.7, abs=1e-12)


def test_gaps_are_bridged_by_straight_lines() -> None:
    x = torch.tensor([[NAN, 1.0, NAN, NAN, 4.0, NAN], [NAN] * 6]).unsqueeze(-1)
    filled = filled_steps(x)[..., 0]
    assert filled[0].tolist() == pytest.approx([1, 1, 2, 3, 4, 4])
    assert filled[1].tolist() == pytest.approx([2.5] * 6)


def test_other_coordinates_of_states_give_the_same_likelihood() -> None:
    torch.manual_seed(0)
    k, d = 3, 2
    root, first = torch.randn(2, k, k).double()
    moves, initial = root @ root.mT, first @ first.mT
    parts = (0.3 * torch.randn(k, k).double(), torch.randn(d, k).double(), torch.randn(d).double())
    noise, loc = torch.rand(d).double(), torch.randn(k).double()
    new = rescaled(*parts, noise, loc, initial, moves)
    x = torch.randn(2, 10, d).double()
    one = LinearDynamics(loc, initial, parts[0], moves, parts[2], parts[1], noise)
    a, c, b, r, m, p = new
    other = LinearDynamics(m, p, a, torch.eye(k).double(), b, c, r)
    values = [kalman_filter(law, x).log_likelihood for law in (one, other)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_starts_are_better_than_noise_alone(k) -> None:
    """With fewer, as many, and more latent dimensions than columns."""
    torch.manual_seed(0)
    x = torch.randn(3, 200, 2).double().cumsum(1)
    a, c, b, r, m, p = dynamics_start(x, torch.ones(3, 200, dtype=torch.bool), k)
    assert bool((torch.linalg.eigvals(a).abs() <= 0.99 + 1e-9).all())
    law = LinearDynamics(m, p, a, torch.eye(k).double(), b, c, r)
    rows = x.flatten(0, 1)
    alone = torch.distributions.Normal(rows.mean(0), rows.std(0)).log_prob(rows).sum()
    assert kalman_filter(law, x).log_likelihood.sum() > alone + 100
