"""The benchmark of music on made-up pieces."""

import numpy as np
import pytest
import torch


@pytest.fixture
def benchmark(script, monkeypatch):
    module = script("music")
    monkeypatch.setattr(module, "FIGURES", {2: 1000.0})
    monkeypatch.setattr(module, "RESTARTS", {2: 1})
    monkeypatch.setattr(module, "MAX_EPOCHS", 30)
    return module


@pytest.fixture
def folder(tmp_path, benchmark):
    generator = np.random.default_rng(0)
    arrays = {}
    for name in benchmark.INDEPENDENT:
        for part, count in (("train", 6), ("valid", 3), ("test", 3)):
            lengths = generator.integers(5, 12, count)
            arrays[f"{name}_{part}"] = np.packbits(generator.random((lengths.sum(), 88)) < 0.05, axis=1)
            arrays[f"{name}_{part}_len"] = lengths.astype(np.int32)
    (tmp_path / "polyphonic_music").mkdir()
    np.savez(tmp_path / "polyphonic_music" / "polyphonic.npz", **arrays)
    return tmp_path


def test_independent_notes_by_hand(benchmark, folder):
    train, _, test = benchmark.read(folder, "JSB_Chorales")
    share = (train.steps.double().sum(0) + 1) / (len(train.steps) + 2)
    x = test.steps.double()
    expected = -(x * share.log() + (1 - x) * (1 - share).log()).sum() / test.lengths.sum()
    assert benchmark.independent_notes(train, test) == pytest.approx(float(expected))
    assert len(train.steps) == int(train.lengths.sum())


def test_it_prints_its_tables_and_test_pieces_choose_nothing(benchmark, folder, monkeypatch, capsys):
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    assert benchmark.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[0] == "JSB_Chorales"
    assert lines[-2].split()[0] == "2"
    assert lines[-2].endswith("  reached")
    parts = benchmark.read(folder, "JSB_Chorales")
    other = benchmark.Pieces(1 - parts[2].x, parts[2].lengths)
    outcomes = [benchmark.measure([*parts[:2], test], 2, 1) for test in (parts[2], other)]
    assert outcomes[0].validation == outcomes[1].validation
    assert outcomes[0].test < outcomes[1].test
    assert torch.equal(parts[0].x.unique(), torch.tensor([0.0, 1.0]))


def test_without_data_it_says_what_to_set(benchmark, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_LVM_DATA", raising=False)
    assert benchmark.main([]) == 2
    assert "Set PYRO_LVM_DATA to a folder" in capsys.readouterr().err
