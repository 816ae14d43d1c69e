"""Ctrl-C inside of an epoch: the step in hand is finished, and a resumed run equals one that was never interrupted."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.training.interruption import Interruption

STEPS = 7  # of an epoch


@pytest.fixture
def press(monkeypatch):
    """A function that lets the user press Ctrl-C, once or several times, in the middle of a step from now on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the test runner may have another
    left = {"steps": -1, "times": 1}
    real = lvm.infer.SVI._one

    def step(*args, **kwargs):
        left["steps"] -= 1
        if left["steps"] == 0:
            for _ in range(left["times"]):
                os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(lvm.infer.SVI, "_one", step)
    yield lambda steps, times=1: left.update(steps=steps, times=times)
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def batches(x: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x), batch_size=8, shuffle=True)


def train(data, **options) -> lvm.Fit:
    model = lvm.models.VAE(2, likelihood="gaussian", hidden=[4])
    inference = lvm.infer.SVI(schedule="linear", learning_rate=0.01)
    return lvm.fit(model, data, inference=inference, max_epochs=4, seed=0, progress=False, **options)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1, 3 * STEPS - 1])
def test_a_resumed_run_equals_one_that_was_never_interrupted(press, x, tmp_path, step, stream) -> None:
    data, options = (batches(x), {}) if stream else (x, {"batch_size": 8})
    whole = train(data, **options)
    press(step)
    part = train(data, **options)
    assert len(part.seen) >= min(50, 8 * step)
    assert part.stopped == "interrupted"
    assert len(part.history["loss"]) == (step - 1 if stream else step) // STEPS
    part.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    loaded.resume(data, max_epochs=4 - len(part.history["loss"]), progress=False, **options)
    assert loaded.history == whole.history
    assert all(torch.equal(value, whole.params[name]) for name, value in loaded.params.items())
    assert torch.equal(loaded.seen, whole.seen)
    assert loaded.trained_on == whole.trained_on
    assert loaded.unfinished is None


def test_other_batches_begin_a_new_epoch(press, x) -> None:
    press(3)
    fit = train(x, batch_size=8)
    assert len(fit.unfinished.losses) == 3
    with pytest.warns(UserWarning, match="expected batch_size=8 and 50 rows"):
        fit.resume(x, max_epochs=1, batch_size=10, progress=False)
    assert fit.inference._steps == 3 + 5


def test_a_second_ctrl_c_stops_at_once(press, x) -> None:
    press(3, times=2)
    fit = train(x, batch_size=8)
    assert fit.stopped == "interrupted"
    assert (fit.inference._steps, fit.unfinished) == (2, None)


def test_other_handlers_and_threads_are_left_alone(press) -> None:
    def own(number, frame) -> None: ...

    signal.signal(signal.SIGINT, own)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found = []
    thread = threading.Thread(target=lambda: found.append(Interruption().__enter__().asked))
    thread.start()
    thread.join()
    assert found == [False]
