"""The benchmark of word alignment on made-up text."""

import gzip
import json

import pytest

import pyro_lvm as lvm


@pytest.fixture
def benchmark(script, monkeypatch):
    module = script("alignment")
    monkeypatch.setattr(module, "NEURAL", {"embedding_dim": 4, "hidden_dim": 4})
    monkeypatch.setattr(module, "NEURAL_STEPS", 1)
    return module


@pytest.fixture
def folder(tmp_path):
    corpus = lvm.datasets.phrases()
    pairs = [corpus.sentences(row) for row in range(corpus.num_pairs)]
    links = [[[a + 1, b + 1] for a, b in sorted(each)] for each in corpus.links]
    spanish = [{"en": en, "es": es, "a": each} for (en, es), each in zip(pairs, links, strict=True)]
    french = [
        {"e": en, "f": es, "a": [[*link, "SP"[i % 2]] for i, link in enumerate(each)]}
        for (en, es), each in zip(pairs, links, strict=True)
    ]
    plain = [{"e": p["e"], "f": p["f"]} for p in french]
    for name, data in (
        (
            "align_europarl_enes/europarl_enes",
            {"dev": spanish, "train": [{"en": p["en"], "es": p["es"]} for p in spanish]},
        ),
        ("align_hansards/hansards_naacl2003", {"dev": french[:5], "test": french[5:30], "train_small": plain}),
    ):
        path = tmp_path / f"{name}.json.gz"
        path.parent.mkdir(parents=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            json.dump(data, file)
    return tmp_path


def test_it_prints_its_tables(benchmark, folder, monkeypatch, capsys):
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    monkeypatch.setattr(benchmark, "EUROPARL_DEVELOPMENT", 5)
    assert benchmark.main(["--quick", "--neural"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for start in ("Model 1, en-es", "Model 2, es-en", "HMM, en-fr", "neural HMM, fr-en"):
        assert any(line.startswith(start) for line in lines), start
    for direction in ("en-fr", "en-es"):  # the HMM's symmetrisations, one of them chosen
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{direction}:"))
        names = [line.split()[1] for line in lines[start : start + 20] if line.startswith("HMM, ")][2:]
        assert [name.rstrip("*") for name in names] == list(benchmark.METHODS)
        assert sum(name.endswith("*") for name in names) == 1
    assert lines[-1].endswith("of 600 seconds")


def test_the_neural_model_is_an_option(benchmark, folder, monkeypatch, capsys):
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    monkeypatch.setattr(benchmark, "EUROPARL_DEVELOPMENT", 5)
    assert benchmark.main(["--quick"]) == 0
    assert "neural" not in capsys.readouterr().out


def test_development_sentences_choose_the_symmetrisation(benchmark):
    gold = [{(0, 0)}, {(0, 0), (1, 1)}]
    forward, backward = [{(0, 0), (5, 5)}, {(0, 0)}], [{(0, 0), (7, 2)}, {(1, 1)}]
    text = benchmark.Text(("a", "b"), [], gold, gold, 1)
    assert text.best_method(forward, backward) == "intersection"  # the scored sentence alone would choose the union
    assert text.scores(forward, development=True).precision == 0.5
    assert text.scores(forward).recall == 0.5


@pytest.mark.parametrize(("symmetrised", "code"), [(0.2, 0), (0.31, 1), (0.3, 1)])
def test_the_claim_is_judged_by_mean_and_better_direction(benchmark, folder, monkeypatch, capsys, symmetrised, code):
    rates = [(0.5, 0.5), (0.4, 0.4), (0.32, 0.3), (symmetrised, symmetrised)]
    monkeypatch.setenv("PYRO_LVM_DATA", str(folder))
    monkeypatch.setattr(benchmark, "measure", lambda text, neural: rates)
    assert benchmark.main([]) == code
    assert f"each better than the last: {'NO' if code else 'yes'}" in capsys.readouterr().out


def test_it_reads_links_and_leaves_development_sentences_out(benchmark, folder):
    text = benchmark.read(folder, "hansards")
    assert len(text.pairs) == 5 + 25 + 44
    assert text.development == 5
    assert all(sure <= possible for sure, possible in zip(text.sure, text.possible, strict=True))
    assert text.scores([set(links) for links in text.possible]).precision == 1.0
    assert benchmark.read(folder, "europarl").sure[0] == lvm.datasets.phrases().links[0]


def test_without_data_it_says_what_to_set(benchmark, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_LVM_DATA", raising=False)
    assert benchmark.main([]) == 2
    assert "PYRO_LVM_DATA" in capsys.readouterr().err
