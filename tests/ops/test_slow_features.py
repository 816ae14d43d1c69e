"""The closed form of slow feature analysis against its definition; expansions."""

import math

import pytest
import torch

from pyro_lvm.ops.slow_features import expanded, expanded_dim, slow_features


def signal(steps=400):
    torch.manual_seed(0)
    t = torch.linspace(0, 2 * math.pi, steps, dtype=torch.float64)
    sources = torch.stack([t.sin(), (5 * t).cos(), (11 * t).sin()], -1)
    return (sources @ torch.randn(3, 3).double() + 2).unsqueeze(0)


def everywhere(x):
    known = torch.ones(x.shape[:2], dtype=torch.bool)
    return known, known[:, 1:]


def test_features_are_what_the_definition_says() -> None:
    """Mean zero, variance one, uncorrelated, slowest first; and no other direction is slower than the first."""
    x = signal()
    found = slow_features(x, *everywhere(x))
    y = (x - found.loc) @ found.unmixing.mT
    torch.testing.assert_close(y.mean(1), torch.zeros(1, 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y[0].mT @ y[0] / len(y[0]), torch.eye(3).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close((y[0, 1:] - y[0, :-1]).square().mean(0), found.delta, rtol=1e-10, atol=0)
    assert bool((found.delta[1:] > found.delta[:-1]).all())
    directions = torch.randn(2000, 3).double()
    others = y[0] @ (directions / directions.norm(dim=-1, keepdim=True)).mT
    assert float((others[1:] - others[:-1]).square().mean(0).min()) >= float(found.delta[0])
    torch.testing.assert_close(found.loc + y @ found.weight.mT, x)


def test_units_and_copies_of_columns_do_not_matter() -> None:
    x = signal()
    found = slow_features(x, *everywhere(x))
    other = torch.cat([x * torch.tensor([1e-6, 1.0, 1e6]), x[..., :1] - x[..., 1:2]], -1)
    again = slow_features(other, *everywhere(other))
    assert again.unmixing.shape == (3, 4)
    torch.testing.assert_close(again.delta, found.delta, rtol=1e-6, atol=0)
    ours, theirs = ((z - f.loc) @ f.unmixing.mT for z, f in ((x, found), (other, again)))
    sign = (ours * theirs).sum(1).sign()
    torch.testing.assert_close(theirs * sign, ours, rtol=0, atol=1e-4)


def test_steps_that_do_not_count_are_not_looked_at() -> None:
    x = signal()
    known, pairs = everywhere(x)
    known = known.clone()
    known[:, 100:120] = False
    pairs = known[:, 1:] & known[:, :-1]
    found = slow_features(x, known, pairs)
    x[:, 100:120] = 1e9
    again = slow_features(x, known, pairs)
    torch.testing.assert_close(again.unmixing, found.unmixing)
    assert again.delta.max() < 1


@pytest.mark.parametrize("d", [1, 2, 5])
def test_expansions_are_all_products_of_two(d) -> None:
    x = torch.randn(7, 3, d).double()
    found = expanded(x, "quadratic")
    assert found.shape[-1] == expanded_dim(d, "quadratic")
    assert expanded(x, "linear") is x
    assert expanded_dim(d, "linear") == d
    products = [x[..., i] * x[..., j] for i in range(d) for j in range(i, d)]
    torch.testing.assert_close(found, torch.cat([x, torch.stack(products, -1)], -1))
