"""Special to mixtures of mixed columns."""

import pytest
import torch
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app
from pyro_lvm.models import HeterogeneousMixture

KINDS = ["normal", "poisson", "categorical", "bernoulli"]


@pytest.fixture
def voters():
    return lvm.datasets.load("voters").x


@pytest.fixture
def every_kind():
    n = 300
    return torch.stack(
        [
            torch.randn(n),
            torch.bernoulli(torch.full((n,), 0.3)),
            torch.randint(5, (n,)).float(),
            torch.poisson(torch.full((n,), 9.0)) * torch.bernoulli(torch.full((n,), 0.9)),
            torch.randn(n).mul(1.5).exp(),
        ],
        -1,
    ).double()


def test_guesses_are_said(every_kind):
    kinds = "0 normal, 1 bernoulli, 2 categorical, 3 poisson, 4 lognormal"
    with pytest.warns(UserWarning, match=f"guessed columns {kinds}. Pass columns"):
        fit = lvm.fit(HeterogeneousMixture(2), every_kind, seed=0, max_epochs=3, progress=False)
    assert fit.model.columns == ["normal", "bernoulli", "categorical", "poisson", "lognormal"]
    assert fit.model.num_categories == [5]


@pytest.mark.parametrize("kind", ["gamma", "lognormal", "exponential"])
def test_positive_columns(local, kind):
    law = {
        "gamma": torch.distributions.Gamma(4.0, 2.0),
        "lognormal": torch.distributions.LogNormal(0.5, 0.7),
        "exponential": torch.distributions.Exponential(0.3),
    }[kind]
    x = law.sample((2000, 1)).double()
    fit = lvm.fit(HeterogeneousMixture(1, [kind]), x, seed=0, progress=False)
    truth = law.log_prob(x).mean().item()
    assert truth - 1e-6 < fit.score(x) < truth + 3 * 2 / 2000
    with pytest.raises(ValueError, match=r"expected .* in column 0; got -1 in row 2. Recode that column, or name"):
        lvm.fit(HeterogeneousMixture(1, [kind]), [[1.0], [2.0], [-1.0]], progress=False)


MISTAKES = {
    "unknown": (["normal", "colour"], None, "columns to be 'auto' or a list out of normal, .*got"),
    "a word": ("normal", None, "columns to be 'auto'"),
    "none": ([], None, "columns to be 'auto'"),
    "too few answers": (["categorical", "categorical"], [3], "for each of the 2 categorical columns"),
    "no answers": (["categorical"], [0], "a number >= 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    columns, num_categories, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        HeterogeneousMixture(2, columns, num_categories)


def test_wrong_number_of_columns(voters):
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 2\); got \(944, 4\). Pass columns with 4 kinds"):
        lvm.fit(HeterogeneousMixture(2, ["normal", "poisson"]), voters, progress=False)


def test_a_constant_column_is_harmless_only_where_the_likelihood_is_bounded(voters):
    x = voters.clone()
    x[:, 1] = 3
    lvm.fit(HeterogeneousMixture(2, KINDS), x, seed=0, max_epochs=3, progress=False)
    x[:, 0] = 40
    with pytest.raises(ValueError, match="expected normal columns that vary; got constant column 0"):
        lvm.fit(HeterogeneousMixture(2, KINDS), x, progress=False)


def test_every_kind_is_saved_and_loaded(tmp_path, every_kind):
    kinds = ["normal", "bernoulli", "categorical", "poisson", "gamma"]
    fit = lvm.fit(HeterogeneousMixture(2, kinds), every_kind, seed=0, max_epochs=3, progress=False)
    fit.save(tmp_path / "fit")
    assert torch.equal(lvm.load(tmp_path / "fit").log_likelihood(every_kind), fit.log_likelihood(every_kind))


def test_command_line(tmp_path, voters):
    table = tmp_path / "gaps.csv"
    rows = [["" if (i + j) % 7 == 0 else f"{v:g}" for j, v in enumerate(row)] for i, row in enumerate(voters.tolist())]
    table.write_text("\n".join(["age,tv,party,vote", *(",".join(row) for row in rows)]))
    arguments = ["fit", "HeterogeneousMixture", "--data", table, "--set", "num_components=2", "--out", tmp_path / "fit"]
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    assert "guessed columns 0 normal, 1 categorical, 2 categorical, 3 bernoulli" in done.output


@pytest.mark.parametrize("guide", [None, "normal"], ids=["point", "posterior"])
def test_gaps_of_every_kind_are_filled(voters, guide):
    x = voters.clone()
    gaps = torch.rand(x.shape) < 0.2
    x[gaps] = torch.nan
    inference = "em" if guide is None else "svi"
    model = HeterogeneousMixture(3, KINDS, priors=None if guide is None else True)
    fit = lvm.fit(model, x, guide, inference, seed=0, max_epochs=100, progress=False)
    filled = fit.impute(x)
    assert torch.equal(filled[~gaps], voters[~gaps])
    assert torch.isfinite(filled).all()
    party, vote = filled[gaps[:, 2], 2], filled[gaps[:, 3], 3]
    assert set(party.tolist()) <= set(range(7))
    assert ((vote > 0) & (vote < 1)).all()
    right = ((vote > 0.5) == (voters[gaps[:, 3], 3] > 0.5)).double().mean()
    assert right > 0.75  # 58 % vote for Clinton
