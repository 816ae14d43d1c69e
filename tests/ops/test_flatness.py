"""Whether sources are flat: signs, units, weights, and how far chance goes."""

import torch

from pyro_lvm.ops.flatness import flatness


def test_it_tells_flat_sources_from_peaked_ones() -> None:
    torch.manual_seed(0)
    uniform, laplace = torch.rand(5000).double(), torch.distributions.Laplace(0.0, 1.0).sample((5000,)).double()
    wave = torch.sin(torch.arange(5000, dtype=torch.float64) / 9)
    found = flatness(torch.stack([uniform, wave, laplace], -1))
    assert found[0] > 10
    assert found[1] > 10
    assert found[2] < -10
    torch.testing.assert_close(flatness(torch.stack([40 * uniform - 7, -wave, 1e-6 * laplace], -1)), found)


def test_of_normal_rows_it_is_a_standard_normal_number() -> None:
    torch.manual_seed(0)
    found = flatness(torch.randn(500, 4000, dtype=torch.float64))
    assert abs(float(found.mean())) < 0.15
    assert abs(float(found.std()) - 1) < 0.1


def test_weights_are_counts() -> None:
    torch.manual_seed(0)
    y = torch.rand(50, 2, dtype=torch.float64)
    counts = torch.randint(0, 3, (50,)).double()
    twice = y.repeat_interleave(counts.long(), 0)
    assert torch.allclose(flatness(y, counts).sign(), flatness(twice).sign())
    assert bool((flatness(y, counts).abs() <= flatness(twice).abs() * 1.001).all())
