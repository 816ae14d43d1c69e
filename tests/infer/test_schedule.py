"""Learning rates that fall during training: the rates of each step, and resumed runs."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm

SGD = partial(torch.optim.SGD, lr=0.5)


def program(x: torch.Tensor) -> None:
    location = pyro.param("location", lambda: torch.zeros(x.shape[-1]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(location, 1.0).to_event(1), obs=x)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(12, 2, generator=torch.Generator().manual_seed(0))


def rates(svi: lvm.infer.SVI, x: torch.Tensor, steps: int) -> list[float]:
    """The rate that each step used."""
    seen = []
    for _ in range(steps):
        svi.step(x)
        seen.append(svi._updates.optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1.0, 1.0, 1.0, 0.5]),
        ("cosine", [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        (lambda done: 1.0 - done**2, [1.0, 15 / 16, 3 / 4, 7 / 16]),
    ],
)
def test_the_rate_of_every_step(x, schedule, expected) -> None:
    svi = lvm.infer.SVI(program, None, SGD, schedule=schedule, num_steps=4)
    assert rates(svi, x, 4) == pytest.approx([0.5 * e for e in expected])


def test_the_step_is_as_large_as_the_rate(x) -> None:
    svi = lvm.infer.SVI(program, None, partial(torch.optim.SGD, lr=0.01), schedule=lambda done: 1 - done, num_steps=2)
    location = torch.zeros(2)
    for multiplier in (1.0, 0.5):
        svi.step(x)
        location = location + 0.01 * multiplier * (x - location).sum(0)
    torch.testing.assert_close(pyro.param("location").detach(), location)


def test_fit_says_how_many_steps_there_are_and_ends_with_them(x) -> None:
    svi = lvm.infer.SVI(schedule="linear", learning_rate=0.1)
    fit = lvm.fit(program, x, inference=svi, batch_size=5, max_epochs=40, patience=1, progress=False, seed=0)
    assert len(fit.history["loss"]) == 40
    assert fit.inference.num_steps == 120
    (group,) = fit.inference._updates.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.1 * 2 / 120)


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(x, tmp_path, stop) -> None:
    options = {"batch_size": 5, "progress": False}

    def interrupt(run) -> None:
        if len(run.history["loss"]) == stop:
            raise KeyboardInterrupt

    def fit(**more):
        svi = lvm.infer.SVI(schedule="linear", learning_rate=0.1)
        return lvm.fit(program, x, inference=svi, max_epochs=6, seed=0, **options, **more)

    whole, part = fit(), fit(callbacks=interrupt)
    part.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit", model=program)
    loaded.resume(x, max_epochs=6 - stop, **options)
    assert loaded.history == whole.history
    assert torch.equal(loaded.params["location"], whole.params["location"])


def test_without_a_number_of_steps_or_with_an_unknown_name_it_says_so(x) -> None:
    with pytest.raises(ValueError, match="Pass num_steps="):
        lvm.infer.SVI(program, schedule="cosine").step(x)
    with pytest.raises(ValueError, match="one of linear, cosine"):
        lvm.infer.SVI(program, schedule="step")
    for schedule in (5, [1.0]):
        with pytest.raises(ValueError, match="one of linear, cosine, or a function"):
            lvm.infer.SVI(program, schedule=schedule)
    with pytest.raises(ValueError, match=r"expected schedule\(0\) >= 0; got nan"):
        lvm.infer.SVI(program, schedule=lambda done: math.nan, num_steps=2).step(x)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        lvm.infer.SVI(program, schedule="cosine", num_steps=0)


def test_a_function_as_schedule_must_be_given_again(x, tmp_path) -> None:
    svi = lvm.infer.SVI(schedule=lambda done: 1 - done)
    lvm.fit(program, x, inference=svi, max_epochs=2, progress=False, seed=0, checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match="schedule of your own"):
        lvm.load(tmp_path / "fit", model=program).resume(x, max_epochs=1, progress=False)


@pytest.mark.parametrize("batches", [3, 70])
def test_a_stream_of_unknown_length_is_counted_in_its_first_epoch(x, batches) -> None:
    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([x] * batches)

    rates = []

    def note(run) -> None:
        rates.append(run.inference._updates.optimizer.param_groups[0]["lr"])

    svi = lvm.infer.SVI(schedule="linear", learning_rate=0.1)
    fit = lvm.fit(program, Rows(), inference=svi, max_epochs=4, progress=False, seed=0, callbacks=note)
    assert fit.inference.num_steps == 4 * batches
    total = 4 * batches
    assert rates == pytest.approx([0.1 * min(1, 2 * (1 - (k * batches - 1) / total)) for k in (1, 2, 3, 4)])
