"""Random starts: how often one fit finds the best optimum, what is reproducible, what is left alone."""

import pytest
import torch

import pyro_lvm as lvm

BEST = {
    ("iris", "full"): -180.185,
    ("iris", "diag"): -306.860,
    ("iris", "tied"): -256.354,
    ("iris", "spherical"): -384.314,
    ("faithful", "diag"): -1127.008,
    ("faithful", "tied"): -1126.316,
    ("faithful", "spherical"): -1637.434,
}


@pytest.mark.parametrize(("name", "covariance"), BEST)
def test_a_single_fit_finds_the_best_optimum_more_often_than_not(name, covariance):
    x, best = lvm.datasets.load(name).x, BEST[name, covariance]
    found = []
    for seed in range(100, 105):
        fit = lvm.fit(lvm.models.GaussianMixture(3, covariance=covariance), x, seed=seed, progress=False)
        found.append(-fit.history["loss"][-1])
    assert sum(value > best - 0.1 for value in found) >= 3, found


def test_the_start_is_reproducible_and_leaves_the_global_generator_alone():
    x, model = lvm.datasets.load("iris").x, lvm.models.GaussianMixture(3)
    before = torch.get_rng_state()
    first, second = (lvm.fit(model, x, seed=7, max_epochs=1, progress=False) for _ in range(2))
    assert first.history == second.history
    assert torch.equal(before, torch.get_rng_state())
    assert len(first.history["loss"]) == 1


@pytest.mark.usefixtures("local")
def test_many_rows_start_at_the_first_draw():
    x = torch.cat([torch.randn(5000, 2), torch.randn(5000, 2) + 8]).double()
    fit = lvm.fit(lvm.models.GaussianMixture(2), x, seed=3, progress=False)
    assert sorted(fit.params["loc"][:, 0].round().tolist()) == pytest.approx([0, 8])
    model = lvm.models.GaussianMixture(2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.initialize(x)
    assert lvm.infer.EM(model).loss(x) == pytest.approx(fit.history["loss"][0], rel=1e-12)


@pytest.mark.parametrize(("name", "clusters", "best"), [("faithful", 2, 1174.185), ("iris", 2, 312.604)])
def test_a_dirichlet_process_starts_with_as_many_clusters_as_the_bound_wants(name, clusters, best):
    """The bound is better than at scikit-learn's ten optima, seeds 0 to 9: at best 1176.7 and 360.5 from there on."""
    x = lvm.datasets.load(name).x.double()
    model = lvm.models.DirichletProcessMixture(10)
    for seed in range(2):
        fit = lvm.fit(model, x, inference="coordinate-ascent", seed=seed, progress=False, max_epochs=60)
        assert fit.history["loss"][-1] == pytest.approx(best, abs=0.01)
        assert int((fit.predict_proba(x).mean(0) > 0.05).sum()) == clusters


@pytest.mark.usefixtures("local")
def test_components_without_a_cluster_start_at_their_prior():
    x, model = lvm.datasets.load("faithful").x.double(), lvm.models.DirichletProcessMixture(6)
    assert [start.get("num_clusters") for start in model.starts] == [1, 2, 4, None]
    model.initialize(x, num_clusters=2)
    start = model.initial_values
    assert bool((start["fractions"][1:].cumprod(0) > 0).all())
    assert float(start["fractions"][0]) > 0.5
    torch.testing.assert_close(start["loc"][2:], x.mean(0).expand(4, 2))
    prior = model._covariance_prior().base_dist
    torch.testing.assert_close(start["covariance"][2:], prior.mean[2:])
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"num_clusters from 1 to 6; got {wrong}"):
            model.initialize(x, num_clusters=wrong)
