"""The benchmark of stepwise EM on few rows."""

import json

import pytest
import torch


@pytest.fixture
def benchmark(script, monkeypatch):
    module = script("stepwise")
    monkeypatch.setattr(module, "BATCH", 400)
    monkeypatch.setattr(module, "COMPONENTS", 2)
    monkeypatch.setattr(module, "COLUMNS", 3)
    return module


def test_passes_over_a_stream_are_alike(benchmark):
    stream = benchmark.Clusters(1000)
    first, second = list(stream), list(stream)
    assert [len(batch) for batch in first] == [400, 400, 200]
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[0], first[1])


def test_both_methods_start_alike_and_come_near_each_other(benchmark):
    results = {method: benchmark.measure(method, 8000, 0) for method in benchmark.METHODS}
    assert results["stepwise EM"].passes == benchmark.PASSES
    assert results["stepwise EM"].score == pytest.approx(results["EM"].score, rel=benchmark.GOAL)


def test_one_fit_is_printed_for_the_process_that_asked(benchmark, capsys):
    assert benchmark.main(["--one", "stepwise EM", "3000", "0"]) == 0
    result = benchmark.Result(**json.loads(capsys.readouterr().out))
    assert result.megabytes >= 0
    assert result.passes == benchmark.PASSES
