import copy

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics import plot_parts, plots

FAITHFUL = lvm.datasets.load("faithful")
IRIS = lvm.datasets.load("iris")
MIXTURE = lvm.models.GaussianMixture


def em(k, x=FAITHFUL.x, **options):
    return lvm.fit(MIXTURE(k), x, seed=0, progress=False, **options)


def area(line):
    return np.trapezoid(line.get_ydata(), line.get_xdata())


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")) if text.get_text()]


@pytest.fixture(scope="module")
def two():
    return em(2)


@pytest.fixture(scope="module")
def bayes():
    options = {"guide": "normal", "seed": 0, "max_epochs": 300, "progress": False}
    return lvm.fit(MIXTURE(2, priors=True), FAITHFUL.x, **options)


class TestDensity:
    def test_one_column_integrates_to_one(self):
        x = FAITHFUL.x[:, :1]
        fit = em(2, x)
        figure = plots.density(fit, x, ["eruptions (min)"])
        (ax,) = figure.axes
        (curve,) = ax.lines
        assert area(curve) == pytest.approx(1, abs=1e-3)
        at = torch.tensor(curve.get_xdata()).reshape(-1, 1)
        torch.testing.assert_close(torch.tensor(curve.get_ydata()), fit.log_likelihood(at).exp())
        assert sum(box.get_width() * box.get_height() for box in ax.patches) == pytest.approx(1)
        assert ax.get_xlabel() == "eruptions (min)"

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_points_are_coloured_by_predict(self, k):
        fit = em(k)
        (ax,) = plots.density(fit, FAITHFUL.x, FAITHFUL.columns).axes
        regions, lines, *points = ax.collections
        counts = torch.bincount(fit.predict(FAITHFUL.x), minlength=k).tolist()
        assert [len(p.get_offsets()) for p in points] == counts
        assert len({tuple(p.get_facecolor()[0]) for p in points}) == k
        assert len(lines.get_paths()) == len(regions.get_paths()) == len(plots.MASSES)

    def test_regions_hold_the_stated_mass(self, two):
        (ax,) = plots.density(two, FAITHFUL.x).axes
        levels = np.sort(ax.collections[1].levels)
        torch.manual_seed(0)
        heights = two.log_likelihood(two.sample(4000)).exp().numpy()
        held = [(heights > level).mean() for level in levels]
        # three standard errors of 4000 draws, and 0.01 for the grid
        assert held == pytest.approx(plots.MASSES, abs=0.01 + 3 * np.sqrt(0.25 / 4000))

    def test_posterior_averages_draws(self, bayes):
        x = FAITHFUL.x
        (ax,) = plots.density(bayes, x).axes
        assert ax.get_title().startswith("Posterior predictive")
        arguments = bayes.arguments(x)
        mean = plot_parts.grid_log_density(bayes, arguments, x.numpy())
        assert mean == pytest.approx(bayes.log_likelihood(x).numpy(), abs=0.3)

    def test_many_columns_lie_on_principal_axes(self):
        (ax,) = plots.density(em(3, IRIS.x), IRIS.x).axes
        points = np.concatenate([np.asarray(p.get_offsets()) for p in ax.collections])
        standard = ((IRIS.x - IRIS.x.mean(0)) / IRIS.x.std(0, correction=0)).numpy()
        largest = np.linalg.eigvalsh(standard.T @ standard)[::-1][:2]
        assert (points**2).sum(0) == pytest.approx(largest)
        assert "principal axes of 4" in ax.get_title()
        assert "73 %" in ax.get_xlabel()

    def test_names_come_from_the_data_frame(self, two):
        frame = pd.DataFrame(FAITHFUL.x.numpy(), columns=FAITHFUL.columns)
        (ax,) = plots.density(two, frame).axes
        assert (ax.get_xlabel(), ax.get_ylabel()) == FAITHFUL.columns

    def test_leaves_pyplot_and_random_state_alone(self, bayes):
        import matplotlib

        before, state = dict(matplotlib.rcParams), torch.get_rng_state()
        plots.density(bayes, FAITHFUL.x)
        assert dict(matplotlib.rcParams) == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_wrong_names(self, two):
        with pytest.raises(ValueError, match=r"density: expected 2 column names; got \['a'\]"):
            plots.density(two, FAITHFUL.x, ["a"])


class TestResponsibilities:
    def test_colours_are_probabilities(self):
        fit = em(3)
        figure = plots.responsibilities(fit, FAITHFUL.x)
        *panels, bar = figure.axes
        assert len(panels) == 3
        assert bar.get_ylabel() == "posterior probability"
        table = fit.predict_proba(FAITHFUL.x).numpy()
        for k, ax in enumerate(panels):
            (points,) = ax.collections
            assert np.sort(np.asarray(points.get_array())) == pytest.approx(np.sort(table[:, k]))
            larger = points.get_sizes() > points.get_sizes().min()
            assert larger.sum() == (table.max(1) < plots.CERTAIN).sum()
            assert larger[-larger.sum() :].all()  # drawn last

    def test_one_column_has_probability_on_the_axis(self):
        x = FAITHFUL.x[:, :1]
        fit = em(2, x)
        ax = plots.responsibilities(fit, x).axes[0]
        offsets = np.asarray(ax.collections[0].get_offsets())
        assert np.sort(offsets[:, 1]) == pytest.approx(np.sort(fit.predict_proba(x)[:, 0].numpy()))

    def test_one_component(self):
        panel, _bar = plots.responsibilities(em(1), FAITHFUL.x).axes
        assert (panel.collections[0].get_array() == 1).all()

    def test_at_most_six_panels(self):
        fit = em(8, IRIS.x)
        figure = plots.responsibilities(fit, IRIS.x)
        assert sum(bool(ax.collections) and bool(ax.get_title()) for ax in figure.axes) == 6
        assert "the 6 largest of 8 components" in figure.get_suptitle()

    def test_needs_a_discrete_site(self):
        import pyro
        import pyro.distributions as dist

        def normal(x):
            loc = pyro.param("loc", torch.tensor(0.0))
            with pyro.plate("data", len(x)):
                return pyro.sample("x", dist.Normal(loc, 1), obs=x)

        x = torch.linspace(-1, 1, 20)
        fit = lvm.fit(normal, x, inference="svi", max_epochs=2, seed=0, progress=False)
        with pytest.raises(ValueError, match="responsibilities: expected a model with exactly one discrete site"):
            plots.responsibilities(fit, x)


class TestPosteriors:
    def test_one_panel_per_entry_each_a_density(self, two, bayes):
        figure = plots.posteriors({"point": two, "guide": bayes}, FAITHFUL.x, columns=FAITHFUL.columns)
        assert len(figure.axes) == 4
        loc = two.params["loc"][two.params["loc"][:, 0].argsort()].flatten()
        for ax, value in zip(figure.axes, loc, strict=True):
            point, density = ax.lines
            assert point.get_xdata() == pytest.approx([float(value)] * 2)
            assert area(density) == pytest.approx(1, abs=0.01)
            low, high = ax.get_xlim()
            assert low < value < high
        assert [ax.get_title() for ax in figure.axes[:2]] == ["component 0, eruptions", "component 0, waiting"]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["point", "guide"]

    def test_labels_are_aligned(self, bayes):
        switched = copy.copy(bayes)
        flip = torch.arange(500) % 2 == 1
        switched.draws = {
            name: torch.where(flip.reshape(1, -1, *[1] * (v.dim() - 2)), v.flip(2), v)
            for name, v in bayes.draws.items()
        }
        for ax in plots.posteriors({"a": bayes, "b": switched}, FAITHFUL.x).axes:
            one, other = ax.lines
            assert one.get_ydata() == pytest.approx(other.get_ydata())

    def test_symmetric_matrices_once(self, two):
        titles = [ax.get_title() for ax in plots.posteriors({"a": two}, FAITHFUL.x, "covariance").axes]
        assert titles[:3] == [f"component 0, column {i}, column {j}" for i, j in ((0, 0), (0, 1), (1, 1))]
        assert len(titles) == 6

    def test_too_many_entries_are_said(self):
        fit = em(3, IRIS.x)
        figure = plots.posteriors({"a": fit}, IRIS.x, "covariance")
        assert "first 24 of 30" in figure.get_suptitle()
        assert len(figure.axes) == 24

    def test_constant_entry(self):
        (ax,) = plots.posteriors({"one": em(1)}, FAITHFUL.x, "weights").axes
        assert ax.lines[0].get_xdata() == pytest.approx([1, 1])

    def test_errors(self, two):
        with pytest.raises(ValueError, match="posteriors: expected at least one fit"):
            plots.posteriors({}, FAITHFUL.x)
        with pytest.raises(ValueError, match=r"got 'mean', not in 'a'\. Choose from covariance, loc, weights"):
            plots.posteriors({"a": two}, FAITHFUL.x, "mean")
        with pytest.raises(ValueError, match=r"one shape of 'loc' in all fits; got \(2, 2\) and \(3, 2\)"):
            plots.posteriors({"a": two, "b": em(3)}, FAITHFUL.x)


class TestLosses:
    def test_one_panel_per_inference(self, two, bayes):
        figure = plots.losses({"one": em(1), "two": two, "bayes": bayes})
        left, right = figure.axes
        assert left.get_title().startswith("EM: loss")
        assert right.get_title().startswith("SVI: loss")
        assert list(left.lines[1].get_ydata()) == two.history["loss"]
        raw, smooth = right.lines
        assert list(raw.get_ydata()) == bayes.history["loss"]
        assert np.abs(np.diff(smooth.get_ydata())).sum() < np.abs(np.diff(raw.get_ydata())).sum() / 3
        assert "two: 1130.3" in texts(figure)

    def test_the_end_can_be_read(self, two):
        fit = em(2, max_epochs=1)
        fit.history["loss"] = [1e6, *np.linspace(120, 100, 99)]
        (ax,) = plots.losses({"a": fit}).axes
        low, high = ax.get_ylim()
        assert 90 < low < 100
        assert high < 130
        assert "start cut off" in ax.get_title()

    def test_validation_has_its_own_panel_and_samplers_none(self, two):
        fit = em(2, FAITHFUL.x[::2], validation=FAITHFUL.x[1::2])
        sampled = em(1)
        sampled.history = {"loss": []}
        figure = plots.losses({"a": fit, "sampled": sampled})
        assert [ax.get_title().split(" (")[0] for ax in figure.axes] == ["EM: loss", "EM: validation loss"]
        with pytest.raises(ValueError, match="losses: expected at least one fit with a history"):
            plots.losses({"sampled": sampled})


class TestComparison:
    def test_dots_bars_and_order(self, two):
        train, test = FAITHFUL.x[::2], FAITHFUL.x[1::2]
        table = lvm.compare({f"K={k}": em(k, train) for k in (1, 2)}, test)
        figure = plots.comparison(table.iloc[::-1])
        ax = figure.axes[0]
        dots = next(line for line in ax.lines if line.get_marker() == "o")
        assert list(dots.get_xdata()) == pytest.approx(list(table["elpd_diff"]))
        assert [label.get_text() for label in ax.get_yticklabels()] == ["K=2", "K=1"]
        assert ax.yaxis_inverted()
        (bars,) = ax.collections
        widths = [segment[1, 0] - segment[0, 0] for segment in bars.get_segments()]
        assert widths == pytest.approx(list(2 * table["dse"]))
        assert "held-out rows" in ax.get_title()

    def test_wrong_table(self):
        with pytest.raises(ValueError, match="got one without elpd_diff, dse"):
            plots.comparison(pd.DataFrame({"elpd": [1.0]}))


def test_every_picture_renders(two, bayes, tmp_path):
    fits = {"two": two, "bayes": bayes}
    for figure in (
        plots.density(two, FAITHFUL.x),
        plots.responsibilities(two, FAITHFUL.x),
        plots.posteriors(fits, FAITHFUL.x),
        plots.losses(fits),
    ):
        assert figure.dpi == 130
        figure.savefig(tmp_path / "picture.png")
