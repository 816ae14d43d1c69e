"""Pictures of rows: what is drawn is what the verbs say, and which picture fits is told by the model's structure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_lvm as lvm
from pyro_lvm.diagnostics import plots, row_plots
from pyro_lvm.diagnostics.row_plot_parts import image_shape_of, mosaic

DIGITS = lvm.datasets.load("digits234").x[:80].float()
FAITHFUL = lvm.datasets.load("faithful")
TABLE = (FAITHFUL.x - FAITHFUL.x.mean(0)) / FAITHFUL.x.std(0)
OPTIONS = {"max_epochs": 1, "seed": 0, "progress": False}


@pytest.fixture(scope="module")
def vae():
    return lvm.fit(lvm.models.VAE(2, hidden=[8]), DIGITS, **OPTIONS)


@pytest.fixture(scope="module")
def machine():
    return lvm.fit(lvm.models.RBM(5), DIGITS, **OPTIONS)


@pytest.fixture(scope="module")
def mixture():
    return lvm.fit(lvm.models.BernoulliMixture(3), DIGITS, **OPTIONS)


def titles(figure):
    figure.draw_without_rendering()
    return [ax.get_title().split("\n")[0] for ax in figure.axes if ax.get_title()]


def tiles(figure, shape, wide):
    """The images of the first mosaic in a figure."""
    table = np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))
    high = (table.shape[0] + 1) // (shape[0] + 1)
    return [
        table[i * (shape[0] + 1) :, j * (shape[1] + 1) :][: shape[0], : shape[1]]
        for i in range(high)
        for j in range(wide)
    ]


class TestShape:
    @pytest.mark.parametrize(
        ("row", "named", "given", "expected"),
        [
            ((64,), False, None, (8, 8)),
            ((64,), True, None, None),
            ((4,), False, None, None),
            ((180,), False, None, None),
            ((180,), True, [12, 15], (12, 15)),
            ((64,), False, (), None),
            ((5, 7), False, None, (5, 7)),
            ((5, 7, 3), False, None, (5, 7, 3)),
            ((48,), False, (4, 4, 3), (4, 4, 3)),
        ],
    )
    def test_square_rows_without_names_are_images(self, row, named, given, expected):
        assert image_shape_of("plot", row, named, given) == expected

    @pytest.mark.parametrize(
        ("names", "images"),
        [
            (range(64), True),
            ([f"pixel_{i}_{j}" for i in range(8) for j in range(8)], True),
            (["age", *(f"answer {i}" for i in range(63))], False),
        ],
    )
    def test_columns_of_tables_that_are_but_numbered_are_pixels(self, names, images):
        table = pd.DataFrame(DIGITS.numpy(), columns=list(names))
        fit = lvm.fit(lvm.models.RBM(5), table, **OPTIONS)
        for rows in (table, None):
            assert (titles(fit.plot(rows, "samples")) == ["64 generated rows"]) == images

    @pytest.mark.parametrize("given", [(8, 9), (64,), (8, 4, 2)])
    def test_another_length_is_refused(self, given, vae):
        with pytest.raises(ValueError, match=r"^samples: expected image_shape=\(height, width\).* product of 64"):
            plots.samples(vae, image_shape=given)

    def test_mosaics_keep_images_apart(self):
        images = np.arange(3 * 2 * 2).reshape(3, 2, 2)
        table = mosaic(images, 2)
        assert table.shape == (5, 5)
        assert np.isnan(table[2]).all()
        assert np.isnan(table[:, 2]).all()
        assert table[3:, :2].tolist() == images[2].tolist()


class TestPictures:
    def test_one_row_is_enough(self, vae, machine):
        for fit in (vae, machine):
            assert fit.plot(DIGITS[:1]).axes

    def test_reconstructions_are_those_of_the_fit(self, vae):
        shown = tiles(vae.plot(DIGITS, "reconstructions"), (8, 8), 8)
        expected = vae.reconstruct(DIGITS[:16]).reshape(-1, 8, 8).numpy()
        rows = DIGITS[:16].reshape(-1, 8, 8).numpy()
        for i in range(16):
            above = (i // 8) * 16 + i % 8
            np.testing.assert_allclose(shown[above], rows[i])
            np.testing.assert_allclose(shown[above + 8], expected[i], rtol=1e-6)

    def test_samples_are_means_where_a_guide_draws_latent_sites(self, vae, machine):
        figure = vae.plot(kind="samples")
        values = np.stack(tiles(figure, (8, 8), 8))
        assert titles(figure) == ["Means of 64 generated rows"]
        assert len(values) == 64
        assert ((values > 0) & (values < 1)).all()
        assert set(np.unique(tiles(machine.plot(kind="samples"), (8, 8), 8))) == {0.0, 1.0}

    def test_filters_are_the_matrix_with_an_axis_as_long_as_a_row(self, vae, machine, mixture):
        np.testing.assert_allclose(
            np.stack(tiles(machine.plot(kind="filters"), (8, 8), 5))[:5].reshape(5, 64), machine.params["weight"].T
        )
        np.testing.assert_allclose(
            np.stack(tiles(mixture.plot(kind="filters"), (8, 8), 3)).reshape(3, 64), mixture.params["probs"]
        )
        assert titles(vae.plot(kind="filters")) == ["Filters: decoder.2.weight"]
        wide = lvm.fit(lvm.models.VAE(2, hidden=[64]), DIGITS, **OPTIONS)  # a hidden layer as wide as a row
        assert titles(wide.plot(kind="filters")) == ["Filters: decoder.2.weight"]
        with pytest.raises(
            ValueError, match=r"axis of 64, as long as a row; got 'nothing'. Choose from decoder.2.weight"
        ):
            vae.plot(kind="filters", site="nothing")

    def test_a_square_matrix_goes_by_the_names_of_its_axes(self):
        x = DIGITS[:, :16]
        fit = lvm.fit(lvm.models.RBM(16), x, **OPTIONS)
        shown = np.stack(tiles(fit.plot(kind="filters"), (4, 4), 8)).reshape(16, 16)
        np.testing.assert_allclose(shown, fit.params["weight"].T)
        many = lvm.fit(lvm.models.BernoulliMixture(16), x, **OPTIONS)
        shown = np.stack(tiles(many.plot(kind="filters"), (4, 4), 8)).reshape(16, 16)
        np.testing.assert_allclose(shown, many.params["probs"])

    def test_the_latent_space_is_transform(self, vae):
        labels = np.arange(80) % 3
        (ax,) = vae.plot(DIGITS, "latent", labels=labels).axes
        points = [np.asarray(group.get_offsets()) for group in ax.collections]
        means = vae.transform(DIGITS).numpy()
        for k, group in enumerate(points):
            np.testing.assert_allclose(group, means[labels == k], rtol=1e-6)
        with pytest.raises(ValueError, match="expected one label for each of 80 rows; got 3"):
            vae.plot(DIGITS, "latent", labels=[0, 1, 2])

    def test_rows_of_two_columns_are_points(self):
        fit = lvm.fit(lvm.models.GaussianRBM(2), TABLE, **OPTIONS)
        (ax,) = fit.plot(TABLE, "samples", columns=FAITHFUL.columns).axes
        assert [len(group.get_offsets()) for group in ax.collections] == [272, 500]
        assert (ax.get_xlabel(), ax.get_ylabel()) == FAITHFUL.columns
        (ax,) = fit.plot(TABLE, "reconstructions").axes
        np.testing.assert_allclose(ax.collections[1].get_offsets(), fit.reconstruct(TABLE), rtol=1e-6)

    def test_covariates_of_new_rows_are_those_of_the_given(self):
        x, c = DIGITS[:, :16], torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
        fit = lvm.fit(lvm.models.VAE(2, hidden=[4]), {"x": x, "covariates": c}, **OPTIONS)
        assert "Means of 64 generated rows" in titles(fit.plot({"x": x, "covariates": c}))
        with pytest.raises(
            ValueError, match=r"plot: expected rows x of VAE, which generates none by itself. Pass x=rows"
        ):
            fit.plot()


class TestOverview:
    def test_panels_follow_the_structure(self, vae, machine, mixture):
        rows, loss = "Rows (upper lines) and their reconstructions (lower)", "SVI: loss"
        latent, samples = "Posterior means of the latent sites", "64 generated rows"
        found = [
            [title.removesuffix(" (start cut off)") for title in titles(f.plot(DIGITS))]
            for f in (vae, machine, mixture)
        ]
        assert found[0] == [rows, latent, "Filters: decoder.2.weight", f"Means of {samples}", loss]
        assert found[1] == [rows, latent, "Filters: weight", samples, "SVI with ContrastiveDivergence: loss"]
        assert found[2] == [rows, "Filters: probs", samples, "EM: loss"]

    def test_a_hidden_chain_gives_its_path_and_continuous_rows_their_density(self):
        series = lvm.datasets.load("earthquakes").x
        chain = lvm.fit(lvm.models.PoissonHMM(2), series, **OPTIONS)
        assert titles(chain.plot(series))[0].startswith("Most probable path")
        assert "states" not in titles(chain.plot())  # a series of its own
        density = lvm.fit(lvm.models.GaussianMixture(2), FAITHFUL.x, **OPTIONS)
        assert titles(density.plot())[0].startswith("Fitted density")

    def test_alignments(self):
        pairs = [(["das", "haus"], ["the", "house"]), (["das", "buch"], ["the", "book"])]
        corpus = lvm.datasets.parallel_corpus(pairs)
        fit = lvm.fit(lvm.models.IBMModel1(), corpus, **OPTIONS)
        figure = fit.plot(corpus)
        np.testing.assert_allclose(figure.axes[0].images[0].get_array(), fit.predict_proba(corpus)[0], rtol=1e-6)
        with pytest.raises(ValueError, match="alignment: expected sequence from 0 to 1; got 2"):
            fit.plot(corpus, "alignment", sequence=2)

    def test_a_program_of_ones_own(self):
        def program(x):
            weight = pyro.param("weight", lambda: 0.1 * torch.randn(3, 16))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

        def guide(x):
            encoder = pyro.param("encoder", lambda: 0.1 * torch.randn(16, 3))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ encoder, 1.0).to_event(1))

        fit = lvm.fit(program, DIGITS[:, :16], guide=guide, **OPTIONS)
        assert titles(fit.plot(DIGITS[:, :16]))[2:4] == ["Filters: weight", "Means of 64 generated rows"]
        shown = np.stack(tiles(fit.plot(kind="filters"), (4, 4), 3)).reshape(3, 16)
        np.testing.assert_allclose(shown, fit.params["weight"])

    def test_a_regression_generates_what_it_observes(self):
        def program(x, y):
            slope = pyro.param("slope", lambda: x.new_zeros(2))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)

        data = {"x": TABLE, "y": TABLE[:, 0]}
        fit = lvm.fit(program, data, inference="em", **OPTIONS)
        ax = fit.plot(data, "samples").axes[0]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("column 0", "density")
        assert "500 generated rows" in titles(fit.plot(data))

    def test_leaves_the_random_state_and_pyplot_alone(self, vae):
        import matplotlib

        before, state = dict(matplotlib.rcParams), torch.get_rng_state()
        vae.plot()
        assert torch.equal(torch.get_rng_state(), state)
        assert dict(matplotlib.rcParams) == before

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            ("picture", {}, "plot: expected kind out of alignment, density, .*; got 'picture'"),
            (
                None,
                {"colour": "red"},
                "plot: expected options out of image_shape, columns, labels, sequence, steps; got 'colour'",
            ),
            ("history", {"labels": [1]}, "plot, kind='history': expected options out of none; got 'labels'"),
            ("density", {}, "density: expected a fit that sums out the latent sites of rows; the guide of VAE draws"),
            ("states", {}, "states: expected a model with one hidden Markov site"),
            ("alignment", {}, "alignment: expected a model whose law sums out alignments; got VAE"),
        ],
    )
    def test_one_sentence_for_what_does_not_fit(self, vae, kind, options, message):
        with pytest.raises(ValueError, match=message):
            vae.plot(DIGITS, kind, **options)

    def test_a_plate_of_fixed_size_is_told_how_many_rows_a_picture_takes(self):
        def fixed(x):
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", 37):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
                pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

        x = torch.linspace(-1, 1, 37)
        fit = lvm.fit(fixed, x, inference="em", **OPTIONS)
        for options, count in (({}, 400), ({"x": x}, 400), ({"kind": "samples"}, 500)):
            with pytest.raises(ValueError, match=f"plate 'data' has 37 rows whatever the data; got {count}"):
                fit.plot(**options)

    def test_titles_say_that_not_all_rows_are_drawn(self, vae, monkeypatch):
        monkeypatch.setattr(row_plots, "POINTS", 50)
        assert titles(vae.plot(DIGITS, "latent")) == ["Posterior means of the latent sites (the first 50 of 80)"]
        assert titles(vae.plot(DIGITS, "reconstructions", image_shape=())) == [
            "60 rows (the first 60 of 80)",
            "reconstructed",
        ]


def shown(figure):
    figure.draw_without_rendering()
    return figure


class TestColumnsOfDifferentSizes:
    WINE = lvm.datasets.load("wine")

    def test_they_are_drawn_in_standard_deviations(self):
        x = self.WINE.x.clone()
        x[0, 0] = torch.nan
        fit = lvm.fit(lvm.models.FactorAnalysis(2), x, seed=0, max_epochs=5, progress=False)
        mean, spread = x.nanmean(0), torch.from_numpy(np.nanstd(x, 0))
        left, _, right, bar = shown(fit.plot(x, "reconstructions")).axes
        np.testing.assert_allclose(left.images[0].get_array().filled(np.nan), ((x - mean) / spread)[:60], atol=1e-9)
        expected = (fit.reconstruct(x)[:60] - mean) / spread
        np.testing.assert_allclose(right.images[0].get_array(), expected, rtol=1e-5, atol=1e-5)
        assert left.images[0].get_clim() == right.images[0].get_clim() == (-3.0, 3.0)
        assert bar.get_ylabel() == "standard deviations from the column's mean"
        filters = shown(fit.plot(x, "filters")).axes[0].images[0].get_array()
        np.testing.assert_allclose(filters, fit.params["weight"].mT / spread, rtol=1e-5, atol=1e-9)

    def test_so_are_steps_of_sequences(self):
        x = torch.randn(50, 2).double().cumsum(0) * torch.tensor([1.0, 100.0])
        frames = [x[:30].numpy(), x[30:].numpy()]
        fit = lvm.fit(lvm.models.LinearDynamicalSystem(1), frames, seed=0, max_epochs=2, progress=False)
        found = shown(fit.plot(frames, "filters")).axes[0].images[0].get_array()
        np.testing.assert_allclose(found, fit.params["weight"].mT / x.std(0, correction=0), rtol=1e-5)

    def test_columns_of_one_size_keep_their_numbers(self):
        x = self.WINE.x[:, [1, 6, 8]]
        fit = lvm.fit(lvm.models.ProbabilisticPCA(1), x, seed=0, max_epochs=5, progress=False)
        left = shown(fit.plot(x, "reconstructions")).axes[0]
        np.testing.assert_allclose(left.images[0].get_array(), x[:60])
        np.testing.assert_allclose(shown(fit.plot(x, "filters")).axes[0].images[0].get_array(), fit.params["weight"].mT)
