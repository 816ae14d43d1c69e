"""Which rows a step holds: what the trainer says, and what the innermost context says."""

import pyro
import pyro.distributions as dist
import torch
from torch.utils.data import DataLoader

import pyro_lvm as lvm
from pyro_lvm.handlers.rows import rows_at_hand, settled

X = torch.arange(23.0).double()


def watching(seen):
    def model(x):
        seen.append((rows_at_hand(), x.detach().clone()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0).double()), 1.0), obs=x)

    return model


def test_the_innermost_counts_and_nothing_is_known_outside():
    assert rows_at_hand() is None
    with lvm.handlers.rows(torch.arange(2), 5) as outer, lvm.handlers.minibatch(total=5):
        assert rows_at_hand() is outer
        with lvm.handlers.rows() as inner:
            assert rows_at_hand() is inner
            assert inner.index is None
        assert rows_at_hand().total == 5
    assert rows_at_hand() is None


def test_every_step_of_a_fit_is_told_its_rows_and_validation_is_new():
    seen = []
    svi = lvm.infer.SVI()
    for batch_size in (None, 5, 1):
        lvm.fit(watching(seen), X, inference=svi, batch_size=batch_size, max_epochs=2, validation=-X, progress=False)
    steps = [(hand, x) for hand, x in seen if hand is not None and hand.search and hand.index is not None]
    assert len(steps) == 2 * (1 + 5 + 23)
    for hand, x in steps:
        assert hand.total == 23
        assert torch.equal(X[hand.index], x)
    held_out = [hand for hand, x in seen if hand is not None and hand.search and bool((x[1:] < 0).any())]
    assert held_out
    assert all(hand.index is None for hand in held_out)


def test_rows_of_a_stream_have_no_numbers():
    seen = []
    lvm.fit(watching(seen), DataLoader(X, batch_size=10), inference=lvm.infer.SVI(), max_epochs=1, progress=False)
    assert all(hand is None or hand.index is None for hand, _ in seen)


def test_a_guide_that_does_not_search_is_settled_as_it_is():
    guide = lvm.infer.svi.no_guide
    assert settled(guide, (X,), {}) is guide
