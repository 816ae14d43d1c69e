"""Patterns of known entries, tiles of rows, column moments and cluster moments with gaps."""

import numpy as np
import pytest
import torch

from pyro_lvm.ops.clusters import cluster_moments
from pyro_lvm.ops.missing import column_moments, fill, has_gaps, patterns, tiles


def test_column_moments_are_those_of_the_known_entries():
    x = torch.randn(30, 3).double()
    x[torch.rand(30, 3) < 0.3] = torch.nan
    x[:, 2] = torch.nan
    mean, variance = column_moments(x)
    np.testing.assert_allclose(mean[:2], np.nanmean(x[:, :2], 0))
    np.testing.assert_allclose(variance[:2], np.nanvar(x[:, :2], 0))
    assert mean[2] == variance[2] == 0


def test_fill_leaves_complete_rows_alone():
    x = torch.randn(5, 2)
    assert fill(x)[0] is x
    assert fill(x)[1] is None
    x[1, 0] = torch.nan
    filled, known = fill(x)
    assert filled[1, 0] == pytest.approx(float(x[:, 0].nanmean()))
    assert torch.equal(known, ~x.isnan())
    assert torch.equal(filled[known], x[known])


@pytest.mark.parametrize(("n", "d", "share"), [(50, 3, 0.3), (200, 70, 0.01), (1, 2, 0.5), (20, 4, 0.0)])
def test_patterns_are_the_distinct_rows(n, d, share):
    known = torch.rand(n, d) >= share
    kinds, number, count = patterns(known)
    assert torch.equal(kinds[number], known)
    assert len(kinds) == len(known.unique(dim=0))
    assert torch.equal(count, number.bincount())


@pytest.mark.parametrize("budget", [1, 7, 64, 10_000])
def test_tiles_hold_every_row_once(budget):
    number = torch.randint(6, (500,)) ** 2 // 5
    _, number = number.unique(return_inverse=True)
    count = number.bincount()
    seen = []
    for tile in tiles(number, count, 3, 2, budget):
        assert tile.rows.shape == tile.filled.shape
        assert torch.equal(number[tile.rows], tile.pattern.unsqueeze(-1).expand_as(tile.rows))
        assert len(tile.pattern) == 1 or tile.rows.numel() * 3 + len(tile.pattern) * 2 <= budget
        seen.append(tile.rows[tile.filled])
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(500))


def test_cluster_moments_of_complete_rows():
    x = torch.cat([torch.randn(60, 2) - 9, torch.randn(40, 2) + 9]).double()
    shares, loc, covariance = cluster_moments(x, 2)
    torch.testing.assert_close(loc, torch.stack([x[:60].mean(0), x[60:].mean(0)]))
    torch.testing.assert_close(shares, torch.tensor([61 / 102, 41 / 102]).double())
    scatter = torch.cov(x[:60].T, correction=0) * 60 + 2 * x.var(0, correction=0).diag() / 2
    torch.testing.assert_close(covariance[0], scatter / 62)


def test_cluster_moments_with_gaps_are_positive_definite():
    x = torch.cat([torch.randn(30, 5) - 3, torch.randn(30, 5) + 3]).double()
    x[torch.rand(60, 5) < 0.6] = torch.nan
    shares, loc, covariance = cluster_moments(x, 4)
    assert bool(torch.isfinite(loc).all())
    assert float(torch.linalg.eigvalsh(covariance).min()) > 0
    assert float(shares.sum()) == pytest.approx(1)


def test_gaps_are_looked_for_again_where_a_tensor_was_written_to():
    x = torch.zeros(4, 3)
    assert not has_gaps(x)
    x[1, 2] = torch.nan
    assert has_gaps(x)
    assert fill(x)[1] is not None
    x.zero_()
    assert not has_gaps(x)
    assert not has_gaps(torch.zeros(2, dtype=torch.long))
    with torch.inference_mode():  # such tensors do not say whether they were written to
        y = torch.zeros(3)
        assert not has_gaps(y)
        y[0] = torch.nan
        assert has_gaps(y)
