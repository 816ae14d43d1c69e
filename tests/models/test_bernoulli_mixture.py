"""Special to the Bernoulli mixture."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

import pyro_lvm as lvm
from pyro_lvm.cli import app


def test_components_of_handwritten_digits_are_the_digits():
    """As in Bishop (2006), figure 9.10; an adjusted Rand index of 0.780 is that of the best maximum found."""
    data = lvm.datasets.load("digits234")
    fit = lvm.fit(lvm.models.BernoulliMixture(3), data.x, restarts=5, seed=0, progress=False)
    assert fit.history["loss"][-1] == pytest.approx(10331.41, abs=0.01)
    assert adjusted_rand_score(data.labels, fit.predict(data.x)) == pytest.approx(0.780, abs=5e-4)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_other_values_than_bits_are_turned_away(value):
    x = torch.zeros(10, 2)
    x[::2] = 1
    x[3, 1] = value
    with pytest.raises(ValueError, match=rf"expected 0 or 1 in column 1; got {value:g} in row 3. Threshold"):
        lvm.fit(lvm.models.BernoulliMixture(2), x, progress=False)


@pytest.mark.parametrize(
    ("options", "message"), [({"num_components": 0}, "num_components"), ({"data_dim": 0}, "data_dim")]
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"BernoulliMixture: expected {message} to be a whole number >= 1; got 0"):
        lvm.models.BernoulliMixture(**{"num_components": 2, **options})


def test_command_line(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    folder = tmp_path / "fit"
    done = run("fit", "BernoulliMixture", "--data", "digits234", "--set", "num_components=3", "--out", folder)
    assert done.exit_code == 0, done.output
    rows = run("sample", folder, "-n", 3).output.splitlines()
    assert len(rows) == 4
    assert set(",".join(rows[1:]).split(",")) == {"0.0", "1.0"}
    bad = run("fit", "BernoulliMixture", "--data", "iris", "--set", "num_components=3", "--out", folder)
    assert bad.exit_code == 2
    assert "expected 0 or 1" in bad.stderr
