"""The benchmark of binary mixtures on made-up data."""

import numpy as np
import pytest
import torch

LIMITS = {"COMPONENTS": (1, 3), "PRIOR_ROWS": (0.3,), "RESTARTS": 2}


@pytest.fixture
def benchmark(script):
    return script("binary_mixture")


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {}
    for name in ("dna", "mushrooms", "nips"):
        probs = generator.beta(0.3, 0.3, (3, 11))
        arrays[f"{name}_nvars"] = np.int32(11)
        for part, size in (("train", 300), ("valid", 100), ("test", 100)):
            x = generator.random((size, 11)) < probs[generator.integers(3, size=size)]
            arrays[f"{name}_{part}"] = np.packbits(x, axis=1)
    (tmp_path / "density_binary").mkdir()
    np.savez(tmp_path / "density_binary" / "density_binary.npz", **arrays)
    return tmp_path


def test_it_prints_its_table(benchmark, folder, monkeypatch, capsys):
    for name, value in LIMITS.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    assert benchmark.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3::2][:3]] == ["dna", "mushrooms", "nips"]
    assert lines[3].split()[1:5] == ["300", "x", "11", "3"]
    assert lines[-1].endswith("of 600 seconds; reached")  # 11 coins cannot miss figures of -98


def test_validation_chooses_and_the_test_rows_do_not(benchmark, folder):
    table = benchmark.read(folder, "dna")
    settings = [benchmark.Setting(k, 0.3) for k in (1, 3)]
    outcome = benchmark.measure(table, settings, restarts=2)
    other = benchmark.measure(benchmark.replace(table, test=1 - table.test), settings, restarts=2)
    assert (other.chosen, other.validation) == (outcome.chosen, outcome.validation)
    assert other.test < outcome.test
    assert torch.equal(benchmark.read(folder, "dna").train.unique(), torch.tensor([0.0, 1.0]))


def test_without_data_it_says_what_to_set(benchmark, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_LVM_DATA", raising=False)
    assert benchmark.main([]) == 2
    assert "Set PYRO_LVM_DATA to a folder" in capsys.readouterr().err
