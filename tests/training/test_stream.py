"""Streams of batches: the same fits as from memory, one batch at a time."""

import itertools
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import pyro_lvm as lvm
from pyro_lvm.training.stream import as_stream

SVI = lvm.infer.SVI(learning_rate=0.02)
OPTIONS = {"inference": SVI, "seed": 0, "progress": False}


class Batches:
    """Batches that can be read again and again, and are never kept."""

    def __init__(self, x, size, form=lambda rows: rows):
        self.x, self.size, self.form = x, size, form
        self.alive = weakref.WeakSet()
        self.most = 0

    def __iter__(self):
        for rows in self.x.split(self.size):
            rows = rows.clone()
            self.alive.add(rows)
            self.most = max(self.most, len(self.alive))
            yield self.form(rows)


class Rows(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class CountedRows(Rows):
    def __len__(self):
        return len(self.x)


class Halved(BatchSampler):
    """Every other batch alone."""

    def __iter__(self):
        return itertools.islice(super().__iter__(), 0, None, 2)


def test_a_stream_of_one_batch_is_the_data(faithful):
    model = lvm.models.GaussianMixture(2)
    wanted = lvm.fit(model, faithful, max_epochs=20, **OPTIONS)
    for stream in (
        Batches(faithful, 272),
        Batches(faithful, 272, lambda rows: {"x": rows}),
        Batches(faithful, 272, lambda rows: (rows.numpy(),)),
        DataLoader(TensorDataset(faithful), batch_size=300),
        DataLoader(faithful, batch_size=300),
        CountedRows(faithful),
    ):
        size = 272 if isinstance(stream, CountedRows) else None
        fit = lvm.fit(model, stream, max_epochs=20, batch_size=size, patience=20, **OPTIONS)
        assert fit.history["loss"] == wanted.history["loss"]
        for name, value in wanted.params.items():
            torch.testing.assert_close(fit.params[name], value, rtol=0, atol=0)


def test_batches_of_a_stream_count_for_all_rows_or_for_themselves(faithful):
    streams = {
        "a loader knows": (DataLoader(TensorDataset(faithful), batch_size=64, shuffle=True), {}),
        "a dataset knows": (CountedRows(faithful[torch.randperm(272)]), {"batch_size": 64}),
        "the user knows": (Batches(faithful[torch.randperm(272)], 64), {"num_rows": 272}),
        "nobody knows": (Batches(faithful[torch.randperm(272)], 64), {}),
        "nobody knows the length": (Rows(faithful[torch.randperm(272)]), {"batch_size": 64}),
    }
    for kind, (stream, options) in streams.items():
        fit = lvm.fit(lvm.models.GaussianMixture(2), stream, max_epochs=60, patience=60, **OPTIONS, **options)
        assert fit.history["loss"][-1] == pytest.approx(1130, rel=0.02), kind
        assert fit.score(faithful) * 272 == pytest.approx(-1130, rel=0.01), kind


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"batch_size": 3}, 10),
        ({"batch_size": 3, "drop_last": True}, 9),
        ({"batch_size": 3, "sampler": SubsetRandomSampler(range(4))}, 4),
        ({"batch_size": 3, "sampler": SubsetRandomSampler(range(4)), "drop_last": True}, 3),
        ({"batch_size": 3, "sampler": RandomSampler(range(10), replacement=True, num_samples=17)}, 17),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler(range(8)), 3, drop_last=False)}, 8),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler(range(8)), 3, drop_last=True)}, 6),
        ({"batch_sampler": [[0, 1], [2]]}, 3),
        ({"batch_sampler": Halved(RandomSampler(range(10)), 3, drop_last=False)}, None),
        ({"batch_size": None}, None),
    ],
)
def test_the_rows_of_a_loader_are_those_that_it_gives(options, rows):
    loader = DataLoader(torch.zeros(10, 2), **options)
    assert as_stream(loader).num_rows == rows
    assert rows is None or sum(len(batch) for batch in loader) == rows


def test_the_rows_of_a_loader_of_counted_rows():
    for drop, rows in ((False, 10), (True, 9)):
        loader = DataLoader(CountedRows(torch.zeros(10, 2)), batch_size=3, drop_last=drop)
        assert as_stream(loader).num_rows == rows == sum(map(len, loader))


def test_every_row_counts_once_however_small_its_batch_is():
    """The loss of an epoch, and its mean gradient by tiny steps, are those of the prior and of all rows."""
    x = torch.cat([torch.zeros(96), torch.full((4,), 10.0)])

    def program(x):
        loc = pyro.param("loc", torch.tensor(1.0, dtype=torch.double))
        pyro.sample("prior", dist.Normal(0.0, 1.0), obs=loc)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = lvm.infer.SVI(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9))
    for data, seen, steps, options in (
        (DataLoader(TensorDataset(x), batch_size=32), x, 4, {}),
        (DataLoader(TensorDataset(x), batch_size=36, drop_last=True), x[:72], 2, {"num_rows": 100}),
        (DataLoader(TensorDataset(x), batch_size=36, drop_last=True), x[:72], 2, {}),
        (Batches(x, 32), x, 4, {"num_rows": 100}),
        (x, x, 4, {"batch_size": 32}),
    ):
        fit = lvm.fit(program, data, max_epochs=1, **{**OPTIONS, "inference": svi}, **options)
        each = options.get("num_rows", len(seen)) / len(seen)
        loss = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) - each * dist.Normal(1.0, 1.0).log_prob(seen).sum()
        assert fit.history["loss"][0] == pytest.approx(loss.item(), rel=1e-6)
        mean_gradient = (1 - fit.params["loc"].item()) / (1e-9 * steps)
        assert mean_gradient == pytest.approx(1 + each * (1 - seen).sum().item(), rel=1e-5)
    uneven = Batches(x, [10, 50, 40])  # their mean size is known after an epoch
    fit = lvm.fit(program, uneven, num_rows=100, max_epochs=2, **{**OPTIONS, "inference": svi})
    loss = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) - dist.Normal(1.0, 1.0).log_prob(x).sum()
    assert fit.history["loss"][1] == pytest.approx(loss.item(), rel=1e-6)


def test_the_loss_of_stepwise_em_is_that_of_all_rows():
    """A batch counts for all rows in its statistics, but for its own in the loss of an epoch."""
    x = torch.cat([torch.zeros(96), torch.full((4,), 10.0)])

    def program(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(3.0, scale.detach()), obs=x)

    options = {**OPTIONS, "inference": lvm.infer.EM(decay=0.7), "max_epochs": 1}
    fit = lvm.fit(program, DataLoader(TensorDataset(x), batch_size=32), **options)
    assert fit.history["loss"][0] == pytest.approx(-dist.Normal(3.0, 1.0).log_prob(x).sum().item(), rel=1e-6)


def test_stepwise_em_takes_a_stream(faithful):
    loader = DataLoader(TensorDataset(faithful), batch_size=64, shuffle=True)
    fit = lvm.fit(
        lvm.models.GaussianMixture(2), loader, max_epochs=50, **{**OPTIONS, "inference": lvm.infer.EM(decay=0.7)}
    )
    assert fit.score(faithful) * 272 == pytest.approx(-1130.264, abs=0.5)


def test_stepwise_em_does_not_need_the_number_of_rows(faithful):
    """Statistics are averages: those of a second pass must not outweigh those of the first."""
    options = {"inference": lvm.infer.EM(decay=0.6), "max_epochs": 3, "seed": 0, "progress": False}
    told = lvm.fit(lvm.models.GaussianMixture(2), Batches(faithful.double(), 34), num_rows=272, **options)
    options["inference"] = lvm.infer.EM(decay=0.6)
    untold = lvm.fit(lvm.models.GaussianMixture(2), Batches(faithful.double(), 34), **options)
    for name, value in told.params.items():
        torch.testing.assert_close(untold.params[name], value)


def test_the_total_decides_between_prior_and_data(faithful):
    options = {**OPTIONS, "guide": "map", "max_epochs": 1}
    model = lvm.models.GaussianMixture(2, priors=True)
    one = lvm.fit(model, Batches(faithful, 68), num_rows=272, **options).history["loss"]
    two = lvm.fit(model, Batches(faithful, 68), num_rows=2720, **options).history["loss"]
    assert two[0] == pytest.approx(10 * one[0], rel=0.2)


def prior_and_rows(x):
    loc = pyro.param("loc", torch.tensor(1.0, dtype=torch.double))
    pyro.sample("prior", dist.Normal(0.0, 1.0), obs=loc)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


class ByTen(BatchSampler):
    """Batches of ten but those that start at odd tens, as of a sampler that leaves rows out."""

    def __iter__(self):
        return (list(range(i, i + 10)) for i in range(0, 100, 20))


def test_rows_that_a_batch_sampler_leaves_out_do_not_count():
    """After an epoch, in which the batches count for themselves, it is known how many there are."""
    x = torch.arange(100.0)
    loader = DataLoader(x, batch_sampler=ByTen(RandomSampler(range(100)), 10, drop_last=False))
    seen = torch.cat(list(loader))
    svi = lvm.infer.SVI(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-12))
    fit = lvm.fit(prior_and_rows, loader, max_epochs=2, **{**OPTIONS, "inference": svi})
    prior = -dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).item()
    rows = -dist.Normal(1.0, 1.0).log_prob(seen).sum().item()
    assert fit.history["loss"] == pytest.approx([5 * prior + rows, prior + rows], rel=1e-6)


def test_an_epoch_may_have_more_rows_than_the_one_before():
    lengths = iter([5, 5, 40, 40])

    class Growing:
        def __iter__(self):
            return iter([torch.zeros(next(lengths))])

    fit = lvm.fit(prior_and_rows, Growing(), max_epochs=3, **OPTIONS)
    assert len(fit.history["loss"]) == 3


@pytest.mark.parametrize("options", [{"num_rows": 100}, {}])
def test_a_resumed_run_on_unequal_batches_equals_an_uninterrupted_one(options, tmp_path):
    stream = Batches(torch.arange(100.0).double() / 50, [10, 50, 40])
    svi = lvm.infer.SVI(learning_rate=0.02, schedule="linear")
    run = {**OPTIONS, "inference": svi, **options}
    whole = lvm.fit(prior_and_rows, stream, max_epochs=4, **run)

    def crash(run):
        if run.epochs_done == 2:
            run.result().save(tmp_path / "half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        lvm.fit(prior_and_rows, stream, max_epochs=4, callbacks=crash, **run)
    resumed = lvm.load(tmp_path / "half", model=prior_and_rows).resume(stream, max_epochs=2, progress=False, **options)
    assert resumed.history == whole.history
    assert torch.equal(resumed.params["loc"], whole.params["loc"])


def test_one_batch_is_in_memory_at_a_time(faithful):
    stream = Batches(faithful.repeat(20, 1), 50)
    fit = lvm.fit(lvm.models.GaussianMixture(2), stream, max_epochs=2, **OPTIONS)
    assert len(fit.history["loss"]) == 2
    fit.score(stream)
    assert stream.most <= 3


def test_verbs_on_a_stream(faithful, tmp_path):
    stream = DataLoader(TensorDataset(faithful), batch_size=50)
    fit = lvm.fit(lvm.models.GaussianMixture(2), stream, max_epochs=3, checkpoint=tmp_path / "fit", **OPTIONS)
    torch.testing.assert_close(fit.log_likelihood(stream), fit.log_likelihood(faithful))
    assert fit.bic(stream) == pytest.approx(fit.bic(faithful))
    again = lvm.load(tmp_path / "fit").resume(stream, max_epochs=2, progress=False)
    straight = lvm.fit(lvm.models.GaussianMixture(2), stream, max_epochs=5, **OPTIONS)
    assert again.history["loss"] == straight.history["loss"]
    with pytest.warns(UserWarning, match="was trained on these rows"):
        assert lvm.compare({"fit": fit}, faithful).rows_seen.item() == 1.0
    with pytest.raises(TypeError, match=r"got DataLoader, a stream of them\. All are needed at once"):
        fit.predict(stream)
    with pytest.raises(TypeError, match=r"got DataLoader, a stream of them\. All are needed at once here: concatenate"):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, validation=stream, **OPTIONS)
    with pytest.raises(TypeError, match=r"got DataLoader, a stream of them\. All are needed at once here: concatenate"):
        lvm.greedy_pretrain(lvm.models.DeepBeliefNet((3, 2)), stream, progress=False)


def test_seeds_make_shuffled_loaders_repeat(faithful):
    def loss():
        loader = DataLoader(TensorDataset(faithful), batch_size=50, shuffle=True)
        return lvm.fit(lvm.models.GaussianMixture(2), loader, max_epochs=3, **OPTIONS).history["loss"]

    assert loss() == loss()


def test_rows_seen_are_kept_in_bounded_space(faithful, monkeypatch):
    from pyro_lvm.training import fingerprint

    monkeypatch.setattr(fingerprint, "LIMIT", 64)
    fit = lvm.fit(lvm.models.GaussianMixture(2), Batches(faithful, 50), max_epochs=1, **OPTIONS)
    assert len(fit.seen) == 64
    with pytest.warns(UserWarning, match="was trained on these rows"):
        assert lvm.compare({"fit": fit}, faithful[::2]).rows_seen.item() == 1.0
    assert lvm.compare({"fit": fit}, faithful + 0.001).rows_seen.item() == 0.0


class Once:
    """What a careless class does: the first epoch uses it up."""

    def __init__(self, x):
        self.batches = iter(x.split(50))

    def __iter__(self):
        return self.batches


MISTAKES = [
    (
        lambda x: DataLoader(x, 9),
        {"inference": "em"},
        "EM uses all rows in every step; got a stream of batches. Pass all",
    ),
    (lambda x: DataLoader(x, 9), {"batch_size": 4}, r"DataLoader brings its own batches; got batch_size=4. Leave it"),
    (lambda x: Batches(x, 9), {"batch_size": 4}, "Batches brings its own batches"),
    (lambda x: Batches(x, 9), {"num_rows": 1.5}, "expected num_rows to be a whole number >= 1; got 1.5"),
    (lambda x: Batches(x, 50), {"num_rows": 20}, "at most total=20 rows"),
    (lambda x: Batches(x, 9), {"inference": "mcmc"}, "continuous latent|needs all rows at once"),
    (lambda x: Once(x[:50]), {}, "Once to give batches in every epoch; got none. Let its __iter__ start"),
    (
        lambda x: Batches(x, 50, lambda rows: rows[:, :1] if len(rows) < 50 else rows),
        {},
        r"shape \(n, 2\); got \(22, 1\)",
    ),
    (lambda x: Batches(x, 50, lambda rows: rows / (len(rows) - 22)), {}, "expected x to be finite"),
    (
        lambda x: Batches(x, 50, lambda rows: {"y": rows}),
        {},
        "of GaussianMixture, x, sample_weights; got y",
    ),
]


@pytest.mark.parametrize(("stream", "options", "message"), MISTAKES)
def test_mistakes(faithful, stream, options, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(lvm.models.GaussianMixture(2), stream(faithful), **{**OPTIONS, **options})


def test_a_sampler_takes_no_stream(faithful):
    sampler = lvm.infer.MCMC(num_samples=2, warmup_steps=2)
    with pytest.raises(ValueError, match=r"MCMC needs all rows at once; got a stream\. Use inference='svi'"):
        lvm.fit(lvm.models.GaussianMixture(2, priors=True), Batches(faithful, 50), inference=sampler, progress=False)


def test_a_stream_of_arrays_of_numpy(faithful):
    stream = Batches(faithful, 100, lambda rows: np.asarray(rows))
    assert len(lvm.fit(lvm.models.GaussianMixture(2), stream, max_epochs=1, **OPTIONS).history["loss"]) == 1


def test_stepwise_em_counts_the_rows_of_a_small_last_batch_once():
    def coin(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    x = torch.zeros(101)
    x[-1] = 1
    loader = DataLoader(TensorDataset(x), batch_size=50)
    fit = lvm.fit(coin, loader, inference=lvm.infer.EM(decay=0.7), max_epochs=100, seed=0, progress=False)
    assert float(fit.params["p"]) == pytest.approx(1 / 101, rel=0.1)
