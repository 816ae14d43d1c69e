"""Progress bars: who sees them."""

import os
import sys
from contextlib import contextmanager

import pytest
import torch

from pyro_lvm.distributions import RBM
from pyro_lvm.evidence import ais
from pyro_lvm.ops.progress import progress_bar, without_progress


@contextmanager
def terminal():
    """The error stream is a terminal that does not know its size; gives a function that reads what it shows."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def shown():
            stream.flush()
            try:
                return os.read(ours, 10000).decode()
            except BlockingIOError:
                return ""

        yield shown
    os.close(ours)


def test_a_terminal_without_a_size_shows_the_bar():
    with terminal() as shown, progress_bar(3, "layer 1/2", "epoch"):
        assert "layer 1/2" in shown()
    for quiet, enabled, delay in ((True, True, 0.0), (False, False, 0.0), (False, True, 60.0)):
        with terminal() as shown, without_progress(quiet):
            with progress_bar(3, "layer 1/2", "epoch", enabled, delay) as bar:
                bar.update()
            assert shown() == ""


def test_silence_lasts_for_those_inside():
    with terminal() as shown, without_progress(), without_progress(quiet=False), progress_bar(3, "layer", "epoch"):
        assert shown() == ""


def test_scoring_shows_how_far_it_is_once_it_takes_long(monkeypatch):
    law = RBM(torch.randn(4, 3), torch.zeros(4), torch.zeros(3))
    with terminal() as shown:
        ais.annealed_importance_sampling(law, 2, torch.linspace(0, 1, 5))
        assert shown() == ""
        monkeypatch.setattr(ais, "PATIENCE", 0.0)
        ais.annealed_importance_sampling(law, 2, torch.linspace(0, 1, 5))
        assert "annealing" in shown()
