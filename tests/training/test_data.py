"""What may be passed as data: every kind gives the same rows, or one sentence that says what is wrong."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro import poutine
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.training.data import as_arguments


def test_kinds_of_arrays_give_the_same_rows(faithful):
    array = faithful.numpy()
    frame = pd.DataFrame(array, columns=["a", "b"])
    kinds = {
        "big-endian": array.astype(">f8"),
        "object": array.astype(object),
        "Float64": frame.astype("Float64"),
        "a column of objects": frame.assign(a=frame.a.astype(object)),
        "sparse columns": frame.astype(pd.SparseDtype(float)),
        "sparse tensor": faithful.to_sparse(),
        "sparse matrix": scipy.sparse.csr_matrix(array),
        "sparse array": scipy.sparse.coo_array(array),
        "list of tensors": list(faithful),
        "list of Series": [row for _, row in frame.iterrows()],
        "long double": array.astype(np.longdouble),
        "masked nowhere": np.ma.masked_array(array),
    }
    for kind, data in kinds.items():
        rows = as_arguments(data).main
        assert rows.dtype == torch.float64, kind
        torch.testing.assert_close(rows, faithful, rtol=0, atol=0)


def test_columns_of_mixed_and_nullable_types():
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [True, False], "c": [3, 4]})
    wanted = torch.tensor([[1.5, 1.0, 3.0], [2.5, 0.0, 4.0]]).double()
    for data in (frame, frame.astype({"b": "boolean", "c": "Int64"}), frame.convert_dtypes()):
        rows = as_arguments(data)
        torch.testing.assert_close(rows.main, wanted)
        assert rows.names == ("a", "b", "c")
    assert as_arguments({"x": frame, "n": frame.c.astype("Int64")}).kwargs["n"].dtype == torch.int64
    assert as_arguments({"x": frame}).names == ("a", "b", "c")


def test_rows_of_a_polars_table(faithful):
    polars = pytest.importorskip("polars")
    rows = as_arguments(polars.DataFrame(faithful.numpy(), schema=["a", "b"]))
    torch.testing.assert_close(rows.main, faithful)
    assert rows.names == ("a", "b")
    with pytest.raises(ValueError, match=r"1 missing value \(NaN\), the first at row 1, column 0"):
        as_arguments(polars.DataFrame({"a": [1, None], "b": [1, 2]}))
    with pytest.raises(TypeError, match="got LazyFrame"):
        as_arguments(polars.DataFrame({"a": [1]}).lazy())


class Rows(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"x": np.full(2, float(index)), "sample_weights": float(index)}


def test_a_dataset_of_dicts():
    arguments = as_arguments(Rows())
    assert arguments.main.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert arguments.weights.tolist() == [0, 1, 2]


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@pytest.mark.parametrize(
    ("items", "got"),
    [
        (({"x": 1.0}, {"x": 2.0, "z": 0}), r"'z'; got none in item 0, and one in item 1\. Write -1"),
        (({"x": 1.0, "z": 0}, {"x": 2.0}), r"'z'; got none in item 1, and one in item 0\."),
        (({"x": 1.0, "z": 0}, {"x": 2.0, "z": None}), r"'z'; got None in item 1\."),
        (({"x": 1.0}, 2.0), r"'x'; got none in item 1"),
    ],
)
def test_items_of_a_dataset_with_other_entries(items, got):
    with pytest.raises(ValueError, match=f"expected every item of the Dataset to have a value of {got}"):
        as_arguments(Items(*items))


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


ODD = {
    "iterator": (iter([1.0]), TypeError, "got a list_iterator, which can be read only once. Convert it"),
    "generator": ((i for i in range(3)), TypeError, "got a generator, which can be read only once"),
    "set": ({1.0, 2.0}, TypeError, "expected an array, tensor, DataFrame, .* or list; got set"),
    "None": (None, TypeError, "got NoneType"),
    "text": ("faithful", TypeError, "got the text 'faithful'"),
    "dates": (pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}), ValueError, "dates or times in column 'when'"),
    "text column": (pd.DataFrame({"a": [1.0], "b": ["u"]}), ValueError, "got text in column 'b'. Drop or encode it"),
    "records": (np.zeros(2, dtype=[("a", float)]), ValueError, "got records of type"),
    "NA": (pd.DataFrame({"a": [1, None]}, dtype="Int64"), ValueError, r"1 missing value \(NaN\), the first at row 1"),
    "NA in booleans": (pd.DataFrame({"a": [True, None]}, dtype="boolean"), ValueError, "1 missing value"),
    "shapes": ([torch.zeros(2, 3), torch.zeros(2, 2)], ValueError, r"to have one shape; got \[\(2, 2\), \(2, 3\)\]"),
    "steps": ([torch.zeros(2, 3), torch.zeros(1, 2)], ValueError, r"steps have one shape; got \[\(2,\), \(3,\)\]"),
    "stream": (Endless(), TypeError, "expected rows that are all in memory; got Endless"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_table_gets_one_sentence(kind):
    data, error, message = ODD[kind]
    with pytest.raises(error, match=message) as raised:
        as_arguments(data)
    assert "\n" not in str(raised.value)


def regression(x, y):
    slope = pyro.param("slope", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def test_arguments_are_those_of_the_model(faithful, counting):
    fit = lvm.fit(counting(), faithful, max_epochs=2, progress=False)
    names = "expected the arguments of Counting, x, sample_weights, z; got "
    for data, got in (
        ({"y": faithful}, "y. Pass a dict with those names"),
        ({"sample_weights": faithful[:, 0]}, "sample_weights"),
        ([faithful, faithful[:9]], "x, lengths. It takes no list of sequences of unequal length: pass one table"),
    ):
        for door in (lambda data: lvm.fit(counting(), data, progress=False), fit.score):
            with pytest.raises(ValueError, match=names + got):
                door(data)
    with pytest.raises(ValueError, match=r"the model's arguments \(.*\) or its latent sites \(z\); got 'y'"):
        lvm.fit(counting(), {"x": faithful, "y": faithful}, progress=False)
    with pytest.raises(ValueError, match="expected the arguments of regression, x, y; got x"):
        lvm.fit(regression, faithful[:, 0], progress=False)
    data = {"x": faithful[:, 0].float(), "y": faithful[:, 1].float()}
    assert lvm.fit(regression, data, progress=False).score(data) < 0


def test_missing_values_reach_those_who_handle_them(faithful, counting, tmp_path, monkeypatch):
    gaps = faithful.clone()
    gaps[3, 1] = torch.nan
    fit = lvm.fit(counting(), gaps, validation=gaps, max_epochs=3, seed=0, progress=False)
    fit.resume(gaps, max_epochs=1, progress=False)
    assert np.isfinite(fit.score(gaps))
    assert fit.predict(gaps).shape == (272,)
    for table in (pd.DataFrame(gaps.numpy()), np.ma.masked_invalid(gaps.numpy())):
        assert fit.score(table) == pytest.approx(fit.score(gaps))
    with pytest.raises(ValueError, match=r"1 infinite value, the first at row 3, column 1. Drop or impute that row\."):
        fit.score(gaps.nan_to_num(torch.inf))
    with pytest.raises(ValueError, match=r"sample_weights to be finite; got 1 missing value"):
        fit.score({"x": gaps, "sample_weights": gaps[:, 1]})
    monkeypatch.setattr(lvm.models.GaussianMixture, "handles_missing", False)
    monkeypatch.setitem(lvm.training.choices.MODELS, "Counting", counting)
    with pytest.raises(ValueError, match=r"impute that row, or use a model that takes missing values: .*Counting\."):
        lvm.fit(lvm.models.GaussianMixture(2), gaps, progress=False)


def test_rows_score_as_often_as_they_count(faithful, counting):
    counts = torch.arange(272) % 3
    repeated = faithful.repeat_interleave(counts, 0)
    weighted = {"x": faithful, "sample_weights": counts}
    fit, short = (lvm.fit(counting(), faithful, max_epochs=n, progress=False) for n in (20, 2))
    for verb in ("score", "aic", "bic"):
        assert getattr(fit, verb)(weighted) == pytest.approx(getattr(fit, verb)(repeated))
    torch.testing.assert_close(fit.predict_proba(weighted), fit.predict_proba(faithful))
    assert fit.posterior(weighted, 2)["z"].shape == (2, 272)
    table = lvm.compare({"a": fit, "b": short}, {**weighted, "x": faithful + 0.01})
    again = lvm.compare({"a": fit, "b": short}, repeated + 0.01)
    numbers = ["elpd", "se", "elpd_diff", "dse", "per_row"]
    np.testing.assert_allclose(table[numbers], again[numbers], rtol=1e-9)


def test_em_of_weighted_rows_is_that_of_repeated_ones(faithful):
    counts = 1 + torch.arange(272) % 3
    weighted = {"x": faithful, "sample_weights": counts}
    one = lvm.fit(two_means, weighted, max_epochs=20, progress=False)
    two = lvm.fit(two_means, faithful.repeat_interleave(counts, 0), max_epochs=20, progress=False)
    torch.testing.assert_close(one.params["loc"], two.params["loc"], rtol=1e-8, atol=0)
    assert one.history["loss"] == pytest.approx(two.history["loss"])


def two_means(x, sample_weights=None):
    loc = pyro.param("loc", torch.tensor([[2.0, 60.0], [4.0, 80.0]]).double())
    scale = pyro.param("scale", torch.tensor([1.0, 10.0]).double(), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)), poutine.scale(scale=1.0 if sample_weights is None else sample_weights):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6]).double()), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale).to_event(1), obs=x)


def test_a_row_that_does_not_count_may_be_impossible(counting):
    x = torch.tensor([[1.0], [2.0], [1e200]], dtype=torch.float64)
    fit = lvm.fit(counting(), x[:2].repeat(5, 1), max_epochs=2, progress=False)
    weights = torch.tensor([1.0, 2.0, 0.0])
    expected = (fit.score(x[:1]) + 2 * fit.score(x[1:2])) / 3
    assert fit.score({"x": x, "sample_weights": weights}) == pytest.approx(expected)


def weighted_normal(x, sample_weights=None):
    loc = pyro.param("loc", torch.tensor(60.0).double())
    scale = 1.0 if sample_weights is None else sample_weights
    with pyro.plate("data", len(x)), poutine.scale(scale=scale):
        pyro.sample("x", dist.Normal(loc, 10.0), obs=x)


def test_sample_weights_reach_the_model(faithful):
    x, weights = faithful[:, 1], 1 + torch.arange(272) % 3
    data = {"x": x, "sample_weights": weights}
    svi = lvm.infer.SVI(learning_rate=0.5)
    fit = lvm.fit(weighted_normal, data, inference=svi, validation=data, max_epochs=300, progress=False)
    mean = float((x * weights).sum() / weights.sum())
    assert fit.params["loc"].item() == pytest.approx(mean, abs=0.05)
    assert fit.history["loss"][-1] == pytest.approx(-fit.score(data) * int(weights.sum()), rel=1e-3)


def test_sample_weights_follow_their_rows_into_batches(faithful, counting):
    seen = []

    class Watched(counting):
        def forward(self, x=None, *, size=None, sample_weights=None):
            if sample_weights is not None:
                seen.append(bool((sample_weights == x[:, 0]).all()))
            return super().forward(x, size=size, sample_weights=None)

    data = {"x": faithful, "sample_weights": faithful[:, 0]}
    lvm.fit(Watched(), data, inference=lvm.infer.EM(decay=0.7), batch_size=50, max_epochs=2, progress=False)
    assert seen
    assert all(seen)


BAD_WEIGHTS = [
    (torch.ones(271), r"sample_weights of shape \(272,\), one for each row; got shape \(271,\)"),
    (torch.ones(272, 1), r"got shape \(272, 1\)"),
    (2.0, r"one for each row; got 2\.0"),
    (-torch.ones(272), "got -1 at row 0. Drop rows that do not count"),
    (torch.zeros(272), "not all zero; got zeros only"),
    (torch.full((272,), torch.inf), "sample_weights to be finite; got 272 infinite values"),
]


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS)
def test_bad_sample_weights(faithful, counting, weights, message):
    with pytest.raises(ValueError, match=message):
        lvm.fit(counting(), {"x": faithful, "sample_weights": weights}, progress=False)


def test_gaps_in_what_is_no_data_argument(faithful):
    y = faithful[:, 1].clone()
    y[5] = torch.nan
    with pytest.raises(ValueError, match=r"y to be finite; got 1 missing .*of a latent site.* may be NaN\.$"):
        lvm.fit(regression, {"x": faithful[:, 0], "y": y}, progress=False)


@pytest.mark.parametrize("inference", ["em", "svi"])
def test_a_table_of_one_column_is_not_a_list_of_numbers(faithful, inference):
    def model(x):
        mean = pyro.param("mean", torch.tensor(3.0).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    options = {"inference": inference, "max_epochs": 2, "seed": 0, "progress": False}
    table = pd.DataFrame({"waiting": faithful[:, 0].numpy()})
    with pytest.raises(ValueError, match=r"'x' has rows along two axes, 272 by 272, as x has one column.*x\[:, 0\]"):
        lvm.fit(model, table, **options)
    assert len(lvm.fit(model, table["waiting"], **options).history["loss"]) == 2


@pytest.mark.parametrize("wrap", [lambda pairs: pairs, lambda pairs: DataLoader(pairs, batch_size=100)])
def test_tuples_are_arguments_in_their_order(faithful, counting, wrap):
    pairs = wrap(TensorDataset(faithful, faithful[:, 1]))
    message = r"got x, one without a name \(1\). Parts of a tuple are arguments in their order: pass dicts"
    with pytest.raises(ValueError, match=message):
        lvm.fit(lvm.models.GaussianMixture(2), pairs, progress=False)


def test_only_models_of_missing_values_impute(faithful):
    fit = lvm.fit(lvm.models.VAE(1, likelihood="gaussian", hidden=[4]), faithful, max_epochs=2, seed=0, progress=False)
    gaps = faithful.clone()
    gaps[3, 1] = torch.nan
    for x in (faithful, gaps):
        with pytest.raises(ValueError, match=r"impute: expected a model that takes missing .*got VAE.*GaussianMixture"):
            fit.impute(x)
