"""Commands for fits whose rows have units or latent vectors, against the verbs of the same fit."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app
from pyro_lvm.training.callbacks import Progress

DIGITS = lvm.datasets.load("digits234").x


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    np.savetxt(folder / "x.csv", DIGITS[:60, :16].numpy(), fmt="%d", delimiter=",")
    common = ("--data", folder / "x.csv", "--max-epochs", 2, "--batch-size", 20, "--no-progress")
    for name, options in (("RBM", "num_hidden=3"), ("SigmoidBeliefNet", "hidden=[3, 2]"), ("VAE", "latent_dim=2")):
        hidden = ("--set", "hidden=[4]") if name == "VAE" else ()
        done = run("fit", name, *common, "--set", options, *hidden, "--out", folder / name)
        assert done.exit_code == 0, done.output
    done = run("fit", "GaussianMixture", "--data", "faithful", "--set", "num_components=2", "--out", folder / "mixture")
    assert done.exit_code == 0, done.output
    return folder


def test_transform_writes_what_the_verb_returns(folder):
    data = ("--data", folder / "x.csv")
    fit = lvm.load(folder / "RBM")
    x = np.loadtxt(folder / "x.csv", delimiter=",")
    assert run("transform", folder / "RBM", *data, "--out", folder / "z.npy").exit_code == 0
    np.testing.assert_allclose(np.load(folder / "z.npy"), fit.transform(x))
    printed = run("transform", folder / "VAE", *data, "--out", folder / "z.csv")
    assert "60 rows written" in printed.output
    table = pd.read_csv(folder / "z.csv")
    assert list(table) == ["z_0", "z_1"]
    np.testing.assert_allclose(table, lvm.load(folder / "VAE").transform(x), rtol=1e-6)
    assert run("transform", folder / "SigmoidBeliefNet", *data, "--out", folder / "z.npz").exit_code == 0
    assert np.load(folder / "z.npz")["h2"].shape == (60, 2)
    refused = run("transform", folder / "SigmoidBeliefNet", *data, "--out", folder / "z2.npy")
    assert refused.exit_code == 2
    assert "--out: expected a .npz or .csv file for h1, h2" in refused.output


def test_predictions_and_reconstructions_of_units(folder):
    data = ("--data", folder / "x.csv")
    assert run("predict", folder / "RBM", *data, "--out", folder / "p.csv").exit_code == 0
    table = pd.read_csv(folder / "p.csv")
    assert list(table)[:3] == ["unit_0", "probability_unit_0_0", "probability_unit_0_1"]
    x = np.loadtxt(folder / "x.csv", delimiter=",")
    fit = lvm.load(folder / "RBM")
    np.testing.assert_array_equal(table[["unit_0", "unit_1", "unit_2"]], fit.predict(x))
    refused = run("predict", folder / "VAE", *data)
    assert refused.exit_code == 2
    assert refused.output.startswith("pyro-lvm: predict: expected a model with discrete latent sites")
    assert run("reconstruct", folder / "RBM", *data, "--out", folder / "r.csv").exit_code == 0
    np.testing.assert_allclose(pd.read_csv(folder / "r.csv"), fit.reconstruct(x), rtol=1e-6)


def test_criteria_summary_and_plan(folder):
    fit = lvm.load(folder / "mixture")
    x = lvm.datasets.load("faithful").x
    assert run("criteria", folder / "mixture", "--data", "faithful").output.splitlines() == [
        f"AIC {fit.aic(x):.4f}",
        f"BIC {fit.bic(x):.4f}",
    ]
    assert "it is z.probs" in run("plan", folder / "mixture", "--data", "faithful").output
    assert run("plan", folder / "RBM", "--data", folder / "x.csv").exit_code == 2
    assert run("summary", folder / "mixture", "--out", folder / "s.csv").exit_code == 0
    table = pd.read_csv(folder / "s.csv", index_col="parameter")
    np.testing.assert_allclose(table["estimate"], fit.summary()["estimate"])


def test_score_takes_a_number_of_samples(folder):
    output = run("score", folder / "VAE", "--data", folder / "x.csv", "--samples", 30).output
    assert "importance weighting with 30 samples of the guide, largest Pareto k-hat" in output
    few = run("score", folder / "VAE", "--data", folder / "x.csv", "--samples", 24).output
    assert "24 samples of the guide, too few to tell by a Pareto k-hat" in few


def test_what_is_not_known_of_one_row_is_no_number(folder, tmp_path):
    pd.read_csv(folder / "x.csv", header=None).iloc[:1].to_csv(tmp_path / "one.csv", index=False, header=False)
    one = ("--data", tmp_path / "one.csv")
    scored = run("score", folder / "VAE", *one, "--samples", 1)
    compared = run("compare", folder / "RBM", folder / "VAE", *one)
    for done in (scored, compared):
        assert done.exit_code == 0, done.output
        assert "nan" not in done.output.lower()
    assert "nats a row\n" in scored.output


@pytest.mark.parametrize("options", [(), ("--kind", "filters", "--image-shape", "4x4"), ("--kind", "history")])
def test_pictures(folder, options):
    out = folder / "picture.png"
    done = run("plot", folder / "RBM", "--out", out, *options)
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    out.unlink()


def test_labels_colour_the_latent_space(folder):
    frame = pd.read_csv(folder / "x.csv", header=None).add_prefix("pixel")
    frame["digit"] = np.arange(60) % 3
    frame.to_csv(folder / "labelled.csv", index=False)
    options = ("--data", folder / "labelled.csv", "--kind", "latent", "--out", folder / "l.svg")
    assert run("plot", folder / "VAE", *options, "--labels", "digit").exit_code == 0
    assert "written" in run("plot", folder / "VAE", *options, "--drop", "digit").output
    refused = run("plot", folder / "VAE", "--out", folder / "l.svg", "--labels", "digit")
    assert refused.output == "pyro-lvm: --labels: expected --data, the rows that have the column; got none.\n"
    assert (
        "expected HxW, e.g. 28x28, HxWx3 or none; got '4by4'"
        in run("plot", folder / "VAE", *options, "--labels", "digit", "--image-shape", "4by4").output
    )


def test_a_column_too_many_is_told_with_the_option_that_drops_it(folder):
    frame = lvm.datasets.load("faithful")
    table = pd.DataFrame(frame.x.numpy(), columns=frame.columns)
    table["kind"] = 1
    table.to_csv(folder / "more.csv", index=False)
    for command in ("score", "predict"):
        refused = run(command, folder / "mixture", "--data", folder / "more.csv")
        assert refused.exit_code == 2
        assert refused.output == (
            "pyro-lvm: data: expected columns eruptions, waiting; got kind besides. Pass --drop kind.\n"
        )
        assert run(command, folder / "mixture", "--data", folder / "more.csv", "--drop", "kind").exit_code == 0


def test_resume_goes_on_from_where_the_fit_stopped(folder, tmp_path):
    data = ("--data", folder / "x.csv", "--no-progress")
    done = run("resume", folder / "VAE", *data, "--max-epochs", 1, "--out", tmp_path / "more")
    assert done.exit_code == 0, done.output
    before, after = lvm.load(folder / "VAE"), lvm.load(tmp_path / "more")
    assert len(after.history["loss"]) == len(before.history["loss"]) + 1


def test_further_arrays_of_a_file_are_arguments_by_name(tmp_path):
    x = DIGITS[:60, :16].numpy()
    covariates = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, covariates=covariates)
    options = ("--set", "latent_dim=2", "--set", "hidden=[4]", "--max-epochs", 2, "--no-progress")
    done = run("fit", "VAE", "--data", tmp_path / "a.npz", *options, "--out", tmp_path / "fit")
    assert done.exit_code == 0, done.output
    fit = lvm.load(tmp_path / "fit")
    assert fit.model.covariate_dim == 2
    assert run("transform", tmp_path / "fit", "--data", tmp_path / "a.npz", "--out", tmp_path / "z.npy").exit_code == 0
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), fit.transform({"x": x, "covariates": covariates}))
    torch.manual_seed(3)
    expected = fit.sample(60, covariates=torch.from_numpy(covariates)).numpy()
    pd.DataFrame(covariates, columns=["a", "b"]).to_csv(tmp_path / "c.csv", index=False)
    for source in ("a.npz", "c.csv"):
        drawn = run("sample", tmp_path / "fit", "--covariates", tmp_path / source, "--seed", 3)
        assert drawn.exit_code == 0, drawn.output
        np.testing.assert_array_equal(pd.read_csv(io.StringIO(drawn.output)), expected)
    assert (
        "of shape (7, 2); got (60, 2)"
        in run("sample", tmp_path / "fit", "--covariates", tmp_path / source, "-n", 7).output
    )
    assert run("sample", tmp_path / "fit").output.startswith("pyro-lvm: VAE: expected covariates of shape (100, 2)")
    np.savez(tmp_path / "b.npz", x=x)
    assert (
        "expected an array 'covariates'" in run("sample", tmp_path / "fit", "--covariates", tmp_path / "b.npz").output
    )
    dropped = run("transform", tmp_path / "fit", "--data", tmp_path / "a.npz", "--drop", "covariates")
    assert "expected covariates of shape (60, 2); got none" in dropped.output


def test_further_arrays_are_known_values_or_refused(tmp_path):
    x, labels = lvm.datasets.load("iris").x.numpy(), lvm.datasets.load("iris").labels.numpy()
    options = ("--set", "num_components=3", "--max-epochs", 3)
    np.savez(tmp_path / "known.npz", x=x, z=np.where(np.arange(150) % 2 == 0, labels, -1))
    done = run("fit", "GaussianMixture", "--data", tmp_path / "known.npz", *options, "--out", tmp_path / "fit")
    assert done.exit_code == 0, done.output
    fit = lvm.load(tmp_path / "fit")
    total = f"{fit.evidence({'x': x, 'z': np.load(tmp_path / 'known.npz')['z']}).total:.4f} nats over 150 rows"
    assert f"log-likelihood {total} and known values of z" in done.output
    assert f"total {total} and known" in run("score", tmp_path / "fit", "--data", tmp_path / "known.npz").output
    predicted = run("predict", tmp_path / "fit", "--data", tmp_path / "known.npz", "--out", tmp_path / "p.csv")
    assert predicted.exit_code == 0
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "p.csv")["component"][::2], labels[::2])
    np.savez(tmp_path / "counts.npz", x=x, n=np.arange(150.0) + 1)
    counts = ("--data", tmp_path / "counts.npz", *options)
    weighed = run("fit", "GaussianMixture", *counts, "--weights", "n", "--out", tmp_path / "w")
    assert weighed.exit_code == 0, weighed.output
    refused = run("fit", "GaussianMixture", *counts, "--out", tmp_path / "o")
    assert refused.exit_code == 2
    assert "got 'n'. Rename it, or leave it out." in refused.output


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_deep_belief_net_is_pretrained(folder, tmp_path, monkeypatch):
    data = ("--data", folder / "x.csv", "--set", "hidden=4,3", "--no-progress", "--batch-size", 20)
    x = np.loadtxt(folder / "x.csv", delimiter=",", dtype=np.float32)
    done = run("fit", "DeepBeliefNet", *data, "--pretrain-epochs", 3, "--max-epochs", 1, "--out", tmp_path / "net")
    assert done.exit_code == 0, done.output
    model = lvm.models.DeepBeliefNet((4, 3))
    expected = lvm.greedy_pretrain(model, x, seed=0, max_epochs=3, batch_size=20, progress=False)
    expected.resume(x, max_epochs=1, batch_size=20, progress=False)
    found = lvm.load(tmp_path / "net").params
    for name, value in expected.params.items():
        np.testing.assert_array_equal(found[name], value)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupt)
        stopped = run("fit", "DeepBeliefNet", *data, "--out", tmp_path / "part")
    assert "interrupted in layer 1 of 2" in stopped.output
    assert f"saved to {tmp_path / 'part'}, as far as it was learned" in stopped.output
    assert lvm.load(tmp_path / "part").model.hidden == (4, 3)
    assert lvm.load(tmp_path / "part").stopped == "interrupted in layer 1 of 2"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupt)
        run("fit", "DeepBeliefNet", *data, "--pretrain-epochs", 3, "--out", tmp_path / "part")
    rest = ("--data", folder / "x.csv", "--no-progress", "--batch-size", 20, "--max-epochs", 1)
    assert run("resume", tmp_path / "part", *rest).exit_code == 0
    for name, value in lvm.load(tmp_path / "part").params.items():
        np.testing.assert_array_equal(value, expected.params[name])
    plain = run("fit", "DeepBeliefNet", *data, "--pretrain-epochs", 0, "--max-epochs", 1, "--out", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    untrained = lvm.fit(model, x, seed=0, max_epochs=1, batch_size=20, progress=False)
    weight = lvm.load(tmp_path / "plain").params["decoder.0.weight"]
    np.testing.assert_array_equal(weight, untrained.params["decoder.0.weight"])
    several = run("fit", "DeepBeliefNet", *data, "--restarts", 2, "--out", tmp_path / "o")
    assert "--restarts: expected 1 with layers that are pretrained; got 2" in several.output
    other = run("fit", "VAE", "--data", folder / "x.csv", "--set", "latent_dim=2", "--pretrain-epochs", 3, "--out", "o")
    assert "--pretrain-epochs: expected a model of layers, as DeepBeliefNet; got VAE" in other.output
