"""The command line: what it prints, and one line with status 2 for every mistake."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app


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
    "gap": ("fit StudentTMixture --data {t}/gap.csv --set num_components=2 --out {t}/o", "missing value"),
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
    "n": ("sample {fit} -n 0", "expected n >= 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_status_2_and_one_line(tmp_path, fitted, mistake):
    (tmp_path / "bad.csv").write_text("a,b\n1,x\n2,y\n")
    (tmp_path / "gap.csv").write_text("a,b\n1,2\n2,\n3,4\n5,4\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.npy").write_text("hello")
    (tmp_path / "x.docx").write_text("hello")
    command, message = MISTAKES[mistake]
    result = run(*command.format(t=tmp_path, fit=fitted).split())
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]
