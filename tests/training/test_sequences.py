"""Sequences at the front door: every form gives the same program arguments, and answers come back in that form."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.utils.data import Dataset, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.distributions import HMM
from pyro_lvm.training.data import as_arguments
from pyro_lvm.training.fingerprint import row_hashes


class Series(lvm.protocols.LatentVariableModel):
    """Columns of unit variance around two levels: the least that states `sequences`."""

    sequences = True
    handles_missing = True

    def forward(self, x=None, lengths=None, *, size=None, num_steps=None, drive=None, sample_weights=None):
        total = 6 if num_steps is None else num_steps
        emission = dist.Normal(self.loc, 1.0).to_event(1)
        law = HMM(self.initial_probs, self.transition_probs, emission, lengths=lengths, num_steps=total)
        if x is not None:
            law = HMM(self.initial_probs, self.transition_probs, emission, lengths=lengths)
        with pyro.plate("data", size if x is None else len(x)):
            return pyro.sample("x", law, obs=x, infer={"states": "z"})

    def check(self, x):
        if x.dim() != 3:
            raise ValueError(f"Series: expected x of shape (n, T, d); got {tuple(x.shape)}.")

    def initialize(self, x, lengths=None):
        self.declare("initial_probs", torch.tensor([0.5, 0.5]).to(x), constraints.simplex)
        self.declare("transition_probs", torch.tensor([[0.8, 0.2], [0.3, 0.7]]).to(x), constraints.simplex)
        start = torch.linspace(-1, 1, 2).to(x).unsqueeze(-1).expand(2, x.shape[-1])
        self.declare("loc", start.contiguous(), constraints.real)


RAGGED = [np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), np.array([[6.0, 7.0]])]


class Items(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return RAGGED[index]


LISTS = {
    "arrays": RAGGED,
    "tensors": [torch.tensor(a) for a in RAGGED],
    "tuple": tuple(RAGGED),
    "nested lists": [a.tolist() for a in RAGGED],
    "frames": [pd.DataFrame(a, columns=["a", "b"]) for a in RAGGED],
    "dict": {"x": RAGGED},
    "float32 beside float64": [RAGGED[0].astype("f4"), RAGGED[1]],
    "integers beside floats": [RAGGED[0].astype(int), RAGGED[1]],
    "Dataset of sequences": Items(),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_become_padded_arrays_and_lengths(kind):
    arguments = as_arguments(LISTS[kind], Series())
    assert arguments.main.shape == (2, 3, 2)
    assert arguments.kwargs["lengths"].tolist() == [3, 1]
    np.testing.assert_array_equal(arguments.main[0], RAGGED[0])
    np.testing.assert_array_equal(arguments.main[1], np.repeat(RAGGED[1], 3, 0))  # the last step, whatever the law
    np.testing.assert_array_equal(arguments.unpadded[1, 1:], 0)
    assert arguments.names == (("a", "b") if kind == "frames" else None)
    assert [len(part) for part in arguments.returned(arguments.main)] == [3, 1]


def test_one_series_and_padded_arrays():
    for data, shape in (
        (np.zeros((5, 2)), (1, 5, 2)),
        (np.zeros(5), (1, 5, 1)),
        ([0, 1, 0, 2], (1, 4, 1)),
        (pd.Series([1.0, 2.0]), (1, 2, 1)),
        (pd.DataFrame({"a": [1.0, 2.0]}), (1, 2, 1)),
        (np.zeros((3, 5, 2)), (3, 5, 2)),
        (TensorDataset(torch.zeros(3, 5, 2)), (3, 5, 2)),
        (TensorDataset(torch.zeros(3, 5, 2), torch.tensor([5, 4, 3])), (3, 5, 2)),
        ({"x": np.zeros((3, 5, 2)), "lengths": [5, 4, 3]}, (3, 5, 2)),
        ({"x": np.zeros((3, 5, 2)), "lengths": np.array([5.0, 4.0, 3.0])}, (3, 5, 2)),
        ([np.zeros((5, 2))], (1, 5, 2)),
        ([np.zeros((5, 2)), np.zeros((5, 2))], (2, 5, 2)),
        ([[0, 1, 0], [1, 1, 1]], (2, 3, 1)),
        ([np.array([0, 1]), np.array([2])], (2, 2, 1)),
    ):
        arguments = as_arguments(data, Series())
        assert arguments.main.shape == shape
        assert arguments.main.is_floating_point()
        lengths = arguments.kwargs.get("lengths")
        assert lengths is None or lengths.dtype == torch.int64


def test_what_goes_along_the_steps_is_padded_alike():
    drive = [np.arange(3.0), np.arange(1.0)]
    arguments = as_arguments({"x": RAGGED, "drive": drive}, Series())
    assert arguments.kwargs["drive"].tolist() == [[[0.0], [1.0], [2.0]], [[0.0], [0.0], [0.0]]]
    one = as_arguments({"x": RAGGED[0], "drive": np.arange(3.0)}, Series())
    assert one.kwargs["drive"].shape == (1, 3, 1)
    padded = {"x": np.full((2, 3, 1), np.inf), "lengths": [3, 1], "drive": np.zeros((2, 3, 1))}
    padded["x"][0], padded["x"][1, 0] = 1.0, 2.0  # what lies in the padding does not matter
    arguments = as_arguments(padded, Series())
    assert torch.isfinite(arguments.main).all()
    with pytest.raises(ValueError, match="expected drive to have the steps of x, 1; got 2 steps in sequence 1"):
        as_arguments({"x": RAGGED, "drive": [np.arange(3.0), np.arange(2.0)]}, Series())


BAD = {
    "empty": ([RAGGED[0], RAGGED[1][:0]], "at least one step; got none in sequence 1. Leave it out"),
    "widths": ([RAGGED[0], np.zeros((2, 3))], r"steps have one shape; got \[\(2,\), \(3,\)\], .* in sequence 1"),
    "too long": (
        {"x": np.zeros((2, 5, 1)), "lengths": [5, 6]},
        "at most 5, the steps .*; got 6 for sequence 1",
    ),
    "zero": ({"x": np.zeros((2, 5, 1)), "lengths": [0, 5]}, "at least 1; got 0 for sequence 0. Leave that sequence"),
    "halves": ({"x": np.zeros((2, 5, 1)), "lengths": [1.5, 5]}, "whole numbers; got 1.5 for sequence 0"),
    "how many": ({"x": np.zeros((2, 5, 1)), "lengths": [5]}, r"lengths of shape \(2,\), one for each sequence; got"),
    "one number": ({"x": np.zeros((2, 5, 1)), "lengths": 5}, r"lengths of shape \(2,\), .*; got 5"),
    "four axes": (np.zeros((2, 2, 2, 2)), r"shape \(n, T, d\), or one of shape \(T, d\); got \(2, 2, 2, 2\)"),
    "no x": ({"lengths": [1]}, "expected an entry 'x' with the sequences"),
    "infinite": ([[1.0, np.inf], [1.0]], "1 infinite value, the first at sequence 0, step 1, column 0"),
    "text": ([["a", "b"], ["a"]], "sequence 0 to hold numbers; got text"),
    "weights": ({"x": RAGGED, "sample_weights": [1.0, 1.0, 1.0]}, r"sample_weights of shape \(2,\)"),
    "a table": (TensorDataset(torch.zeros(3, 5)), r"x of shape \(n, T, d\), n sequences of T steps; got \(3, 5\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_sequences_get_one_sentence(kind):
    data, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as raised:
        as_arguments(data, Series())
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    return lvm.fit(Series(), sequences(12), seed=0, progress=False)


def sequences(n, columns=1):
    law = HMM(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1], [0.2, 0.8]]), dist.Normal(torch.tensor([-2.0, 2.0]), 1.0)
    )
    law = HMM(law.initial.probs, law.transition.probs[0], law.emission, num_steps=9)
    x = law.expand([n]).sample().double().unsqueeze(-1).repeat(1, 1, columns)
    return [row[: 3 + i % 7] for i, row in enumerate(x)]


def test_answers_have_the_form_of_the_data(fit):
    data = sequences(4)
    paths, tables = fit.predict(data), fit.predict_proba(data)
    assert [tuple(p.shape) for p in paths] == [(3,), (4,), (5,), (6,)]
    assert [tuple(t.shape) for t in tables] == [(3, 2), (4, 2), (5, 2), (6, 2)]
    padded = torch.nn.utils.rnn.pad_sequence(data, batch_first=True)
    table = {"x": padded, "lengths": [3, 4, 5, 6]}
    assert fit.predict(table).shape == (4, 6)
    assert (fit.predict(table)[0, 3:] == -1).all()
    assert (fit.predict_proba(table)[0, 3:] == 0).all()
    for i, one in enumerate(data):
        assert torch.equal(fit.predict(one), paths[i])
        assert torch.equal(fit.predict(one.squeeze(-1).numpy()), paths[i])
        torch.testing.assert_close(fit.predict_proba(one), tables[i])
        assert torch.equal(fit.predict(table)[i, : len(one)], paths[i])
        torch.testing.assert_close(fit.log_likelihood(one), fit.log_likelihood(data)[i : i + 1])
    torch.testing.assert_close(fit.log_likelihood(table), fit.log_likelihood(data))
    assert fit.posterior(data, 5)["z"].shape == (5, 4, 6)
    assert fit.sample(3).shape == (3, 9, 1)
    assert fit.sample(3, num_steps=4).shape == (3, 4, 1)
    assert fit.impute(data[0].squeeze(-1)).shape == (3,)
    assert [len(part) for part in fit.impute(data)] == [3, 4, 5, 6]


def test_lengths_travel_with_their_rows():
    data = sequences(30)
    whole = lvm.fit(Series(), data, seed=0, progress=False, max_epochs=3)
    stepwise = lvm.fit(
        Series(), data, inference=lvm.infer.EM(decay=0.7), batch_size=7, validation=data[:5], max_epochs=3, seed=0,
        progress=False,
    )  # fmt: skip
    assert len(stepwise.history["validation_loss"]) == 3
    for each in (whole, stepwise):
        alone = torch.cat([each.log_likelihood([one]) for one in data])
        torch.testing.assert_close(each.log_likelihood(data), alone)


def test_rows_are_recognised_whatever_their_neighbours(fit):
    data = sequences(6)
    longer = [*data, torch.zeros(40, 1).double()]
    first = row_hashes(as_arguments(data, fit.model).unpadded)
    assert torch.equal(first, row_hashes(as_arguments(longer, fit.model).unpadded)[:6])


def test_columns_are_found_by_name_in_every_frame():
    frames = [pd.DataFrame(part.numpy(), columns=["a", "b"]) for part in sequences(5, columns=2)]
    fit = lvm.fit(Series(), frames, seed=0, progress=False, max_epochs=2)
    assert fit.columns == ("a", "b")
    turned = [frame[["b", "a"]] for frame in frames]
    torch.testing.assert_close(fit.log_likelihood(turned), fit.log_likelihood(frames))
    with pytest.raises(ValueError, match="expected columns a, b; got a"):
        fit.predict([frames[0][["a"]]])


def levels(x, lengths=None):
    """A program of a user's own, of numbers: (n, T)."""
    initial = pyro.param("initial", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    switch = pyro.param("switch", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", HMM(initial, switch, dist.Normal(loc, 1.0), lengths=lengths), obs=x)


def test_programs_of_ones_own(tmp_path):
    data = [part.squeeze(-1).float() for part in sequences(20)]
    fit = lvm.fit(levels, data, seed=0, progress=False)
    assert [len(path) for path in fit.predict(data)] == [len(part) for part in data]
    assert fit.posterior(data, 3)["x_states"].shape == (3, 20, 9)
    assert fit.sample(4, num_steps=5).shape == (4, 5)
    equal = [part[:3] for part in data]  # of equal lengths, but a list all the same
    assert fit.predict(equal)[0].shape == (3,)
    gone = torch.stack(equal)
    gone[3, 1] = torch.nan  # steps of NaN are missing to a hidden Markov site
    assert torch.isfinite(fit.log_likelihood(gone)).all()
    fit.save(tmp_path / "fit")
    again = lvm.load(tmp_path / "fit", model=levels)
    torch.testing.assert_close(again.log_likelihood(data), fit.log_likelihood(data))


def test_what_is_no_sequence_stays_a_table(faithful):
    assert as_arguments(list(faithful), lvm.models.GaussianMixture(2)).main.shape == (272, 2)
    assert as_arguments(faithful, lvm.models.GaussianMixture(2)).layout is None
    with pytest.raises(ValueError, match="takes no list of sequences of unequal length"):
        as_arguments([faithful, faithful[:3]], lvm.models.GaussianMixture(2))


def test_no_sequence_at_all():
    with pytest.raises(ValueError, match="at least one sequence; got an empty list"):
        lvm.fit(lvm.models.GaussianHMM(2), [], progress=False)
