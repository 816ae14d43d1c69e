"""Pictures of hidden Markov models show what the numbers say."""

import io

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics import plots


@pytest.fixture(scope="module")
def series():
    """Two sequences whose states last 5 and 10 steps."""
    path = np.tile(np.repeat([0, 1], [5, 10]), 12)
    x = np.stack([3.0 * path, -path], 1) + 0.3 * np.random.default_rng(0).normal(size=(180, 2))
    frame = pd.DataFrame(x, columns=["level (m)", "other"])
    return [frame[:100], frame[100:]], path


@pytest.fixture(scope="module")
def fit(series):
    return lvm.fit(lvm.models.GaussianHMM(2, covariance="diag"), series[0], seed=0, progress=False)


def drawn(figure):
    figure.savefig(io.BytesIO())
    return figure


def test_states_over_a_series(fit, series):
    frames, _ = series
    figure = drawn(plots.states(fit, frames, sequence=1))
    first, second, below = figure.axes
    assert [first.get_ylabel(), second.get_ylabel()] == ["level (m)", "other"]
    np.testing.assert_allclose(first.lines[0].get_ydata(), frames[1]["level (m)"])
    path = fit.predict(frames)[1].numpy()
    for k in range(2):
        spans = [p.get_extents() for p in first.collections[k].get_paths()]
        covered = {t for box in spans for t in range(int(np.ceil(box.x0)), int(np.floor(box.x1)) + 1)}
        assert covered == set(np.flatnonzero(path == k))
    assert "sequence 1: " in first.get_title()
    assert below.get_ylim() == (0, 1)
    names = ["a", "b"]
    assert drawn(plots.states(fit, frames[0], columns=names)).axes[0].get_ylabel() == "a"
    with pytest.raises(ValueError, match="expected sequence from 0 to 1; got 2"):
        plots.states(fit, frames, sequence=2)
    with pytest.raises(ValueError, match="expected 2 column names"):
        plots.states(fit, frames, columns=["a"])


def test_transitions_are_written_in_their_cells(fit, series):
    figure = drawn(plots.transitions(fit, series[0]))
    table = fit.params["transition_probs"].numpy()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0" if v == 0 else f"{v:.2f}" for v in table.ravel()]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), table)


def test_durations_against_the_geometric_law(fit, series):
    figure = drawn(plots.durations(fit, series[0]))
    low = int(fit.params["loc"][:, 0].argmin())
    stay = fit.params["transition_probs"].diagonal().numpy()
    for k, ax in enumerate(figure.axes[:2]):
        heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches}
        assert heights[5 if k == low else 10] > 0.7  # the runs cut by the end of a sequence aside
        law = ax.lines[0]
        np.testing.assert_allclose(law.get_ydata()[0], 1 - stay[k], rtol=1e-6)
        assert sum(law.get_ydata()) <= 1 + 1e-9


def test_pictures_of_posteriors_and_other_programs(series, faithful):
    frames, _ = series
    model = lvm.models.GaussianHMM(2, covariance="diag", priors=True)
    posterior = lvm.fit(model, frames, inference="coordinate-ascent", seed=0, progress=False)
    for picture in (plots.states, plots.transitions, plots.durations):
        drawn(picture(posterior, frames))
    drawn(plots.posteriors({"VB": posterior}, frames, site="loc"))
    mixture = lvm.fit(lvm.models.GaussianMixture(2), faithful, max_epochs=1, seed=0, progress=False)
    for picture in (plots.states, plots.transitions, plots.durations):
        with pytest.raises(ValueError, match="expected a model with one hidden Markov site; got none"):
            picture(mixture, faithful)


def test_gaps_and_symbols(series):
    x = torch.tensor([0.0, 0, 1, 0, 2, 2, torch.nan, 2, 2, 0, 0, 1])
    fit = lvm.fit(lvm.models.CategoricalHMM(2), x, seed=0, progress=False)
    drawn(plots.states(fit, x))
    drawn(plots.durations(fit, x))


def test_semi_markov_models_show_their_states(series):
    x = series[0][0][["level (m)"]]
    fit = lvm.fit(lvm.models.HiddenSemiMarkov(2, 12), x, max_epochs=3, seed=0, progress=False)
    figure = drawn(plots.transitions(fit, x))
    assert len(figure.axes[0].texts) == 4
    assert len(drawn(plots.durations(fit, x)).axes) == 2
    drawn(plots.states(fit, x))


@pytest.fixture(scope="module")
def smooth():
    """Two sequences of two columns with gaps, and linear dynamics of them."""
    x = np.random.default_rng(1).normal(size=(50, 2)).cumsum(0)
    x[10:15, 1] = np.nan
    frames = [pd.DataFrame(part, columns=["level (m)", "other"]) for part in (x[:20], x[20:])]
    model = lvm.models.LinearDynamicalSystem(2)
    return lvm.fit(model, frames, seed=0, max_epochs=3, progress=False), frames


def test_normal_states_over_a_series(smooth):
    fit, frames = smooth
    figure = drawn(plots.states(fit, frames, steps=4))
    first, second, below = figure.axes
    assert [first.get_ylabel(), second.get_ylabel()] == ["level (m)", "other"]
    lines = {line.get_label(): line for line in second.lines}
    np.testing.assert_array_equal(lines["measured"].get_ydata(), frames[0]["other"])
    np.testing.assert_array_equal(lines["missing"].get_xdata(), np.arange(10, 15))
    filled, coming = fit.impute(frames)[0].numpy(), fit.forecast(frames, 4)
    np.testing.assert_allclose(lines["level"].get_ydata()[10:15], filled[10:15, 1])
    np.testing.assert_allclose(lines["forecast"].get_ydata()[1:], coming.mean[0, :, 1])
    np.testing.assert_array_equal(lines["forecast"].get_xdata(), np.arange(19, 24))
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in second.collections]
    assert len(tops) == 4  # bands of values and of levels, then those to come
    assert tops[0] > tops[1]
    outer = second.collections[2].get_paths()[0].vertices
    low, high = (part[0, -1, 1] for part in coming.interval(0.9))
    ends = outer[outer[:, 0] == 23, 1]
    np.testing.assert_allclose([ends.min(), ends.max()], [low, high])
    np.testing.assert_allclose(below.lines[1].get_ydata()[:20], fit.transform(frames)[0][:, 1])
    assert "sequence 0, and the 4 that follow" in first.get_title()
    assert drawn(fit.plot(frames[0])).axes[0].get_title() == "Smoothed steps, and the 2 that follow"
    assert drawn(fit.plot(frames[0], steps=7)).axes[0].get_title() == "Smoothed steps, and the 7 that follow"
    assert "forecast" not in {line.get_label() for line in plots.states(fit, frames, steps=0).axes[0].lines}
    with pytest.raises(ValueError, match="states: expected steps to be a whole number >= 0"):
        plots.states(fit, frames, steps=-1)


def test_filters_of_linear_dynamics_are_what_states_say_of_columns(smooth):
    fit, frames = smooth
    axes = drawn(plots.filters(fit, frames)).axes[0]
    assert "weight" in axes.get_title()


def test_features_of_products_of_columns_stand_alone(smooth):
    _, frames = smooth
    frame = frames[1]
    fit = lvm.fit(lvm.models.SlowFeatureAnalysis(1, "quadratic"), frame, seed=0, progress=False)
    figure = drawn(plots.states(fit, frame))
    assert figure.axes[0].get_title() == "Steps and their states"
    assert [line.get_label() for line in figure.axes[0].lines] == ["measured"]
    np.testing.assert_allclose(figure.axes[-1].lines[0].get_ydata(), fit.transform(frame)[:, 0])


def test_paths_go_on_into_the_steps_to_come(fit, series):
    frames, _ = series
    figure = drawn(plots.states(fit, frames, steps=3))
    coming = fit.forecast(frames, 3, num_samples=1000)
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), coming.mean[0, :, 1])
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_xdata(), [100, 101, 102])
    assert figure.axes[-1].get_xlim() == (-0.5, 102.5)
