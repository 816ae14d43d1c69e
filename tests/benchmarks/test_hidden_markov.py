"""The benchmarks of hidden Markov models on little data, without the peer."""

import json

import pytest
import torch

import pyro_lvm as lvm


@pytest.fixture
def benchmark(script):
    return script("hidden_markov")


def test_data_are_the_same_each_time_and_starts_are_those_of_fit(benchmark):
    size = benchmark.Size(5, 20, 2, 3, 1.0)
    x = benchmark.overlapping_states(size, seed=1)
    assert x.shape == (5, 20, 3)
    assert torch.equal(x, benchmark.overlapping_states(size, seed=1))
    start = benchmark.start_of(size, x, seed=0)
    assert start["covariance"].shape == (2, 3, 3)
    result = benchmark.Result()
    benchmark.race_step(size, x, start, result)
    assert set(result.parameters) == set(benchmark.PARAMETERS)
    assert benchmark.difference(result, result) == 0
    again = benchmark.start_of(size, x, seed=0)
    assert all(torch.equal(value, again[name]) for name, value in start.items())  # EM wrote elsewhere


def test_one_long_chain_is_printed_for_the_process_that_asked(benchmark, capsys):
    found = {}
    for dtype in ("float64", "float32"):
        assert benchmark.main(["--long-chain", "2000", dtype]) == 0
        found[dtype] = json.loads(capsys.readouterr().out)["log_likelihood"]
    assert found["float32"] == pytest.approx(found["float64"], rel=1e-5)


def test_the_picture(benchmark, tmp_path, monkeypatch):
    def fake(*tables, algorithm):
        return None

    monkeypatch.setattr(benchmark.chains, "smooth", fake)
    assert benchmark.crossover(tmp_path / "new", quick=True).stat().st_size > 1000


def test_restarts_without_a_peer(script, monkeypatch, capsys):
    restarts = script("restarts")
    monkeypatch.setattr(restarts, "SEQUENCES", 3)
    monkeypatch.setattr(restarts, "STEPS", 30)
    monkeypatch.setattr(restarts, "RESTARTS", 2)
    monkeypatch.setattr(restarts.importlib.util, "find_spec", lambda name: None)
    assert restarts.main(["--quick"]) == 0
    captured = capsys.readouterr()
    assert "hmmlearn not found" in captured.err
    assert "symbols: optimum found in so many of 2 data sets" in captured.out
    law = restarts.truth("symbols")
    torch.testing.assert_close(law.emission.probs.sum(-1), torch.ones(3))
    assert isinstance(law, lvm.distributions.HMM)
