"""The command line with sequences: one series a file, or a column that tells them apart."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def table(output):
    return pd.read_csv(io.StringIO(output))


@pytest.fixture(scope="module")
def frame():
    path = np.tile(np.repeat([0, 1], [6, 9]), 6)
    values = 4.0 * path + np.random.default_rng(0).normal(size=90)
    return pd.DataFrame({"day": np.repeat(["tue", "mon", "sun"], 30), "level": values, "known": -1})


@pytest.fixture(scope="module")
def fitted(frame, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    frame.to_csv(folder / "series.csv", index=False)
    done = run(
        "fit", "GaussianHMM", "--data", folder / "series.csv", "--sequence-column", "day", "--drop", "known",
        "--set", "num_states=2", "--out", folder / "fit",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "over 3 sequences" in done.output
    return folder


@pytest.fixture
def options(fitted):
    return fitted / "fit", "--data", fitted / "series.csv", "--sequence-column", "day", "--drop", "known"


def test_verbs_give_the_numbers_of_the_fit(fitted, options, frame):
    fit = lvm.load(fitted / "fit")
    parts = [frame.loc[frame.day == day, ["level"]] for day in ("tue", "mon", "sun")]
    scored = run("score", *options).output
    assert f"total {fit.log_likelihood(parts).sum():.4f} nats over 3 sequences" in scored
    assert "nats a sequence" in scored
    predicted = table(run("predict", *options).output)
    assert list(predicted.columns) == ["day", "state", "probability_state_0", "probability_state_1"]
    assert list(predicted.day) == list(frame.day)
    np.testing.assert_array_equal(predicted.state, torch.cat(fit.predict(parts)))
    np.testing.assert_allclose(predicted.iloc[:, 2:], torch.cat(fit.predict_proba(parts)))
    coming = table(run("forecast", *options, "--steps", 2).output)
    assert list(coming.day) == ["tue", "tue", "mon", "mon", "sun", "sun"]
    assert list(coming.step) == [1, 2] * 3
    np.testing.assert_allclose(coming.level, fit.forecast(parts, 2).mean.flatten())
    assert (coming["level_5%"] < coming["level_95%"]).all()
    assert "in-sample" in run("compare", options[0], *options).output


def test_rows_of_a_sequence_need_not_stand_together(fitted, options, frame):
    mixed = frame.sort_values("level", kind="stable").sort_index(key=lambda i: i % 30, kind="stable")
    mixed = mixed.drop(columns="known")
    mixed.to_csv(fitted / "mixed.csv", index=False)
    predicted = table(run("predict", options[0], "--data", fitted / "mixed.csv", "--sequence-column", "day").output)
    wanted = table(run("predict", *options).output).loc[mixed.index].reset_index(drop=True)
    pd.testing.assert_frame_equal(predicted, wanted)


def test_gaps_are_filled_in_place(fitted, options, frame):
    gone = frame.drop(columns="known")
    gone.loc[40, "level"] = np.nan
    gone.to_csv(fitted / "gone.csv", index=False)
    where = "--data", fitted / "gone.csv", "--sequence-column", "day", "--out", fitted / "filled.csv"
    assert "1 of 90 cells filled in" in run("impute", options[0], *where).output
    filled = pd.read_csv(fitted / "filled.csv")
    assert list(filled.day) == list(frame.day)
    assert (filled.level.drop(40) - frame.level.drop(40)).abs().max() < 1e-12
    assert np.isfinite(filled.level[40])


def test_one_series_and_generated_ones(fitted, frame):
    frame[["level"]].to_csv(fitted / "one.csv", index=False)
    done = run("fit", "GaussianHMM", "--data", fitted / "one.csv", "--set", "num_states=2", "--out", fitted / "single")
    assert "over 1 sequence;" in done.output
    assert len(table(run("predict", fitted / "single", "--data", fitted / "one.csv").output)) == 90
    rows = table(run("sample", fitted / "single", "-n", 3, "--steps", 4).output)
    assert list(rows.columns) == ["sequence", "level"]
    assert list(rows["sequence"]) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(table(run("forecast", fitted / "single", "--data", fitted / "one.csv", "--steps", 5).output)) == 5


def test_known_states_and_weights_in_columns(fitted, frame):
    labelled = frame.assign(weight=np.repeat([1.0, 2.0, 1.0], 30))
    labelled.loc[::7, "known"] = (labelled.level[::7] < 2).astype(int)
    labelled.to_csv(fitted / "labelled.csv", index=False)
    common = (
        "--data", fitted / "labelled.csv", "--sequence-column", "day", "--set", "num_states=2", "--labels", "known",
        "--weights", "weight", "--out", fitted / "labelled",
    )  # fmt: skip
    done = run("fit", "GaussianHMM", *common)
    assert "over 4 sequences" in done.output, done.output
    loc = lvm.load(fitted / "labelled").params["loc"].flatten()
    assert loc[0] > loc[1]
    labelled.loc[0, "weight"] = 9.0
    labelled.to_csv(fitted / "labelled.csv", index=False)
    done = run("fit", "GaussianHMM", *common)
    assert done.exit_code == 2
    assert "one weight for each sequence; got several in sequence 0" in done.output


def test_mistakes_in_one_line(fitted, options):
    for arguments, message in (
        (("predict", options[0], *options[1:3], "--drop", "day", "--sequence-column", "week"), "got 'week'"),
        (("predict", options[0], "--data", options[2]), "column 'day' holds text"),
        (("forecast", *options, "--steps", 0), "steps to be a whole number >= 1"),
        (("fit", "GaussianHMM", "--data", options[2], "--out", fitted / "x"), "column 'day' holds text"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert message in done.output
        assert len(done.output.strip().splitlines()) == 1


def test_sequences_are_generated_given_covariates(frame, tmp_path):
    warm = (frame[["level"]].to_numpy() > 2).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=frame[["level"]], covariates=warm, day=np.repeat([0, 1, 2], 30))
    options = ("--sequence-column", "day", "--set", "num_states=2", "--max-epochs", 3, "--out", tmp_path / "fit")
    done = run("fit", "InputDrivenHMM", "--data", tmp_path / "a.npz", *options)
    assert done.exit_code == 0, done.output
    fit, at = lvm.load(tmp_path / "fit"), warm.reshape(3, 30, 1)[:, :12]
    np.savez(tmp_path / "c.npz", covariates=at)
    pd.DataFrame({"day": np.repeat(["a", "b", "c"], 12), "warm": at.ravel()}).to_csv(tmp_path / "c.csv", index=False)
    pd.DataFrame({"warm": at[0, :, 0]}).to_csv(tmp_path / "one.csv", index=False)
    for count, given in ((3, ["c.npz"]), (3, ["c.csv", "--sequence-column", "day"]), (1, ["one.csv"])):
        torch.manual_seed(0)
        expected = fit.sample(count, covariates=at[:count])
        assert expected.shape == (count, 12, 1)
        drawn = run("sample", tmp_path / "fit", "--covariates", tmp_path / given[0], *given[1:])
        assert drawn.exit_code == 0, drawn.output
        np.testing.assert_allclose(table(drawn.output)["column 0"], expected.flatten(), rtol=1e-6)
    refused = run("sample", tmp_path / "fit", "--covariates", tmp_path / "c.npz", "--steps", 9)
    assert len(refused.output.splitlines()) == 1
    assert "expected covariates of shape (3, 9, 1); got (3, 12, 1)" in refused.output


def test_normal_states_of_sequences_are_printed_by_row(fitted, frame):
    frame = frame.drop(columns="known")
    frame.loc[3, "level"] = np.nan
    frame.to_csv(fitted / "gaps.csv", index=False)
    data = ("--data", fitted / "gaps.csv", "--sequence-column", "day")
    done = run(
        "fit", "LinearDynamicalSystem", *data, "--set", "latent_dim=2", "--max-epochs", 5, "--out", fitted / "lds"
    )
    assert done.exit_code == 0, done.output
    fit = lvm.load(fitted / "lds")
    parts = [frame.loc[frame.day == day, ["level"]] for day in ("tue", "mon", "sun")]
    states = table(run("transform", fitted / "lds", *data).output)
    assert list(states.columns) == ["day", "z_0", "z_1"]
    np.testing.assert_allclose(states[["z_0", "z_1"]], torch.cat(fit.transform(parts)), rtol=1e-6)
    frame.assign(note="seen").to_csv(fitted / "notes.csv", index=False)
    noted = ("--data", fitted / "notes.csv", "--sequence-column", "day", "--drop", "note")
    filled = table(run("impute", fitted / "lds", *noted).stdout)
    assert filled.level[3] == pytest.approx(float(fit.impute(parts)[0][3]))
