"""The command line: what it prints, and one line with status 2 for every mistake."""

import dataclasses
import io
import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app
from pyro_lvm.cli import fit as fit_table
from pyro_lvm.cli.training import _settings


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def fitted(tmp_path):
    folder = tmp_path / "fit"
    done = run("fit", "GaussianMixture", "--data", "faithful", "--set", "num_components=2", "--out", folder)
    assert done.exit_code == 0, done.output
    assert "-1130.26" in done.output
    return folder


def test_the_verbs_on_a_saved_fit(fitted, tmp_path):
    assert "total -1130.26" in run("score", fitted, "--data", "faithful").output
    predicted = run("predict", fitted, "--data", "faithful", "--out", tmp_path / "p.csv")
    assert predicted.exit_code == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert len(table) == 272
    np.testing.assert_allclose(table.filter(like="probability").sum(axis=1), 1)
    rows = run("sample", fitted, "-n", 5).output.splitlines()
    assert rows[0] == "eruptions,waiting"
    assert len(rows) == 6
    assert rows == run("sample", fitted, "-n", 5).output.splitlines()
    assert "in-sample" in run("compare", fitted, fitted, "--data", "faithful").output


def test_list_names_every_model():
    output = run("list").output
    for name, entry in lvm.CATALOG.items():
        assert name in output
        assert entry.reference in output


@pytest.mark.parametrize("kind", ["header.csv", "plain.csv", "a.npy", "a.npz"])
def test_kinds_of_files(tmp_path, faithful, kind):
    path, array = tmp_path / kind, faithful.numpy()
    if kind.endswith("csv"):
        np.savetxt(path, array, delimiter=",", header="a,b" if "header" in kind else "", comments="")
    elif kind.endswith("npy"):
        np.save(path, array)
    else:
        np.savez(path, x=array)
    done = run("fit", "GaussianMixture", "--data", path, "--set", "num_components=2", "--out", tmp_path / "out")
    assert "-1130.26" in done.output


MISTAKES = {
    "no file": ("fit GaussianMixture --data nope.csv --set num_components=2 --out {t}/o", "no file 'nope.csv'"),
    "not a table": ("fit GaussianMixture --data {t}/bad.csv --set num_components=2 --out {t}/o", "holds text"),
    "empty file": ("fit GaussianMixture --data {t}/empty.csv --set num_components=2 --out {t}/o", "empty"),
    "wrong ending": ("fit GaussianMixture --data {t}/x.docx --set num_components=2 --out {t}/o", "ending in"),
    "not an array": ("fit GaussianMixture --data {t}/bad.npy --set num_components=2 --out {t}/o", "not a table"),
    "header": ("fit GaussianMixture --data {t}/header.csv --set num_components=2 --out {t}/o", "only a header"),
    "weights": (
        "fit GaussianMixture --data faithful --weights n --set num_components=2 --out {t}/o",
        "expected a column out of eruptions, waiting; got 'n'",
    ),
    "a weight of text": ("score {fit} --data {t}/bad.csv --weights b", "holds text"),
    "no column left": ("score {fit} --data faithful --drop eruptions --drop waiting", "at least one row; got shape"),
    "no fit in the folder": (
        "fit GaussianMixture --data faithful --set num_components=many --out {t}",
        "is not a fit, or holds other files",
    ),
    "no fit in another folder": ("resume {fit} --data faithful --max-epochs 0 --out {t}", "is not a fit, or holds"),
    "epochs of layers": (
        "fit DeepBeliefNet --data faithful --set hidden=3,2 --pretrain-epochs -1 --out {t}/o",
        "--pretrain-epochs: expected passes to be a whole number >= 0; got -1",
    ),
    "seed": ("fit GaussianMixture --data faithful --set num_components=2 --seed -1 --out {t}/o", "expected seed"),
    "model": ("fit Nope --data faithful --out {t}/o", "expected a model out of"),
    "setting": ("fit GaussianMixture --data faithful --set colour=red --out {t}/o", "--set: expected NAME=VALUE"),
    "type": ("fit GaussianMixture --data faithful --set num_components=many --out {t}/o", "num_components"),
    "missing": ("fit GaussianMixture --data faithful --out {t}/o", "needs --set num_components"),
    "inference": (
        "fit GaussianMixture --data faithful --set num_components=2 --inference magic --out {t}/o",
        "expected inference",
    ),
    "covariance": (
        "fit GaussianMixture --data faithful --set num_components=2 --set covariance=round --out {t}/o",
        "expected covariance",
    ),
    "no fit": ("score {t}/nothing --data faithful", "no fit in"),
    "columns": ("score {fit} --data iris", "expected x of shape (n, 2)"),
    "n": ("sample {fit} -n 0", "expected n to be a whole number >= 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, fitted, mistake):
    (tmp_path / "bad.csv").write_text("a,b\n1,x\n2,y\n")
    (tmp_path / "gap.csv").write_text("a,b\n1,2\n2,\n3,4\n5,4\n")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.npy").write_text("hello")
    (tmp_path / "x.docx").write_text("hello")
    command, message = MISTAKES[mistake]
    result = run(*command.format(t=tmp_path, fit=fitted).split())
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]


@pytest.fixture
def entry(counting, monkeypatch):
    """A model of the command line's catalog that takes sample weights, missing values and labels."""
    monkeypatch.setitem(lvm.training.choices.MODELS, "Counting", counting)
    given = {"name": "Counting", "model": counting, "example": counting, "variants": ({},), "inferences": ("em",)}
    monkeypatch.setitem(lvm.CATALOG, "Counting", dataclasses.replace(lvm.CATALOG["GaussianMixture"], **given))


def test_weights_labels_and_columns_that_are_no_data(tmp_path, faithful, entry, monkeypatch):
    calls = []
    monkeypatch.setattr(lvm, "fit", lambda model, data, **options: calls.append(data) or fit)
    table = pd.DataFrame(faithful.numpy(), columns=["a", "b"])
    table.assign(n=np.arange(272) % 3, group=-1, id=np.arange(272)).to_csv(tmp_path / "t.csv", index=False)
    fit = lvm.training.fit(lvm.CATALOG["Counting"].model(), table, max_epochs=5, progress=False)
    counted = ("--data", tmp_path / "t.csv", "--weights", "n", "--drop", "id")
    done = run("fit", "Counting", *counted, "--labels", "group", "--out", tmp_path / "fit")
    assert done.exit_code == 0, done.output
    assert "over 271 rows" in done.output
    (data,) = calls
    assert list(data["x"].columns) == ["a", "b"]
    assert data["sample_weights"].tolist() == [n % 3 for n in range(272)]
    assert set(data["z"]) == {-1}
    repeated = table.loc[table.index.repeat(np.arange(272) % 3)]
    scored = run("score", tmp_path / "fit", *counted, "--drop", "group").output
    assert f"mean {fit.score(repeated):.6f} nats a row" in scored
    assert "over 271 rows" in scored
    ranked = run("compare", tmp_path / "fit", *counted, "--drop", "group").output
    assert f"{fit.score(repeated) * 271:.3f}" in ranked
    predicted = run("predict", tmp_path / "fit", *counted[:2], *("--drop", "n", "--drop", "id", "--drop", "group"))
    assert len(predicted.output.splitlines()) == 273


def test_unknown_labels_are_empty_or_minus_one(tmp_path, faithful):
    known = np.where(faithful[:, 1] > 68, 1, 0)
    columns = {
        "empty": np.where(np.arange(272) < 200, known, np.nan),
        "ones": np.where(np.arange(272) < 200, known, -1),
    }
    columns["both"] = np.where(np.arange(272) < 230, columns["ones"], np.nan)
    table = pd.DataFrame(faithful.numpy(), columns=["a", "b"])
    told = set()
    for name, labels in columns.items():
        table.assign(z=labels).to_csv(tmp_path / f"{name}.csv", index=False)
        source = ("--data", tmp_path / f"{name}.csv", "--labels", "z", "--set", "num_components=2")
        done = run("fit", "GaussianMixture", *source, "--max-epochs", "5", "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        told.add(done.output.replace(str(tmp_path / name), ""))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("12,8", (12, 8)),
        ("(12, 8)", (12, 8)),
        ("[12, 8]", [12, 8]),
        ("12,", (12,)),
        ("normal,poisson", ["normal", "poisson"]),
        ("full", "full"),
        ("null", None),
        ("None", None),
        ("true", True),
        ("False", False),
    ],
)
def test_values_of_settings(text, value):
    assert _settings(lvm.models.VAE, ["latent_dim=2", f"hidden={text}"])["hidden"] == value


def test_empty_cells_are_missing_values(tmp_path, faithful, entry, monkeypatch):
    rows = pd.DataFrame(faithful.numpy(), columns=["a", "b"])
    rows.iloc[3, 1] = np.nan
    rows.to_csv(tmp_path / "gap.csv", index=False)
    options = ("--data", tmp_path / "gap.csv", "--out", tmp_path / "fit", "--max-epochs", "5")
    done = run("fit", "Counting", *options)
    assert done.exit_code == 0, done.output
    assert run("score", tmp_path / "fit", "--data", tmp_path / "gap.csv").exit_code == 0
    monkeypatch.setattr(lvm.models.GaussianMixture, "handles_missing", False)
    refused = run("fit", "GaussianMixture", "--set", "num_components=2", *options)
    assert refused.exit_code == 2
    assert "1 missing value (NaN), the first at row 3, column 1" in refused.stderr
    assert "use a model that takes missing values: " in refused.stderr


def test_the_bar_is_for_those_who_watch(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = {}
    for flag in ("--progress", "--no-progress"):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        fit_table(
            "GaussianMixture", "faithful", tmp_path / "fit", settings=["num_components=2"], progress="no" not in flag
        )
        shown[flag] = terminal.getvalue()
    assert "fit:" in shown["--progress"]
    assert shown["--no-progress"] == ""


def test_python_runs_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pyro_lvm", "list"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("pyro_lvm", run_name="__main__")
    assert not end.value.code
    assert "GaussianMixture" in capsys.readouterr().out
