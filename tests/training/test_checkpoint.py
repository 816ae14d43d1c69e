"""Fits on disk: exact, safe, and honest about damage."""

import copy
import hashlib
import json
import re
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import pyro_lvm as lvm
from pyro_lvm.training.checkpoint import check_folder


def coin(x):
    p = pyro.param("p", torch.tensor(0.3).double(), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p.expand(len(x))), obs=x)


@pytest.fixture
def fit(faithful):
    return lvm.fit(lvm.models.GaussianMixture(2), faithful, seed=0, progress=False)


def test_a_new_process_computes_the_same_bits(fit, faithful, tmp_path):
    fit.save(tmp_path / "fit")
    torch.save(
        {"x": faithful, "ll": fit.log_likelihood(faithful), "z": fit.predict(faithful)}, tmp_path / "expected.pt"
    )
    program = (
        "import sys, torch, pyro_lvm as lvm\n"
        "fit, e = lvm.load(sys.argv[1] + '/fit'), torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
        "assert torch.equal(fit.log_likelihood(e['x']), e['ll']) and torch.equal(fit.predict(e['x']), e['z'])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_cut_off_at_any_byte(fit, tmp_path):
    fit.save(tmp_path / "fit")
    for name in ("fit.json", "state.pt"):
        path = tmp_path / "fit" / name
        whole = path.read_bytes()
        lengths = range(len(whole)) if name == "fit.json" else [0, 1, 100, len(whole) // 2, len(whole) - 1]
        for length in lengths:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="is damaged or cut off"):
                lvm.load(tmp_path / "fit")
        path.write_bytes(whole)
    lvm.load(tmp_path / "fit")


def test_loading_never_unpickles_code(fit, tmp_path):
    fit.save(tmp_path / "fit")

    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code was run')",))

    torch.save({"tensors": Evil()}, tmp_path / "fit" / "state.pt")
    record = json.loads((tmp_path / "fit" / "fit.json").read_text())
    record["state_sha256"] = hashlib.sha256((tmp_path / "fit" / "state.pt").read_bytes()).hexdigest()
    (tmp_path / "fit" / "fit.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="damaged"):
        lvm.load(tmp_path / "fit")


def entries(record, path=()):
    """Where the entries of nested dicts are."""
    for name, value in record.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from entries(value, (*path, name))


def without(record, path):
    record = copy.deepcopy(record)
    part = record
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return record


@pytest.mark.parametrize("options", [{"inference": "em"}, {"guide": "normal", "inference": "svi"}])
def test_files_without_an_entry_are_refused_in_one_sentence(faithful, tmp_path, options):
    """Checksums are right: something else wrote them. Entries that this version added may lack."""
    model = lvm.models.GaussianMixture(2, priors=options["inference"] == "svi" or None)
    lvm.fit(model, faithful, seed=0, max_epochs=2, progress=False, **options).save(tmp_path)
    record = json.loads((tmp_path / "fit.json").read_text())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    files = [(path, record, without(state, path)) for path in entries(state) if isinstance(path[-1], str)]
    files += [(path, without(record, path), state) for path in entries(record) if path[-1] != "data_dim"]
    refused = []
    for path, one, other in files:
        torch.save(other, tmp_path / "state.pt")
        digest = hashlib.sha256((tmp_path / "state.pt").read_bytes()).hexdigest()
        (tmp_path / "fit.json").write_text(json.dumps({**one, "state_sha256": digest}))
        try:
            lvm.load(tmp_path).resume(faithful, max_epochs=1, progress=False)
        except ValueError as error:
            refused.append((path, str(error)))
    for path, said in refused:
        assert re.match(r"(load|resume): .*\.", said)
        assert len(path) > 1 or path == ("format",) or f"got none named {path[0]!r}" in said
    assert len(refused) > 20


def test_functions_are_passed_again(tmp_path):
    x = torch.bernoulli(torch.full((50,), 0.7)).double()
    fit = lvm.fit(coin, x, seed=0, progress=False)
    fit.save(tmp_path / "coin")
    with pytest.raises(ValueError, match=r"model \('coin'\) is your own code.*Pass it: lvm.load\(folder, model=...\)"):
        lvm.load(tmp_path / "coin")
    again = lvm.load(tmp_path / "coin", model=coin)
    assert torch.equal(again.log_likelihood(x), fit.log_likelihood(x))
    with pytest.raises(ValueError, match="does not have"):
        lvm.load(tmp_path / "coin", model=lambda x: None)


@pytest.mark.parametrize("options", [{"inference": "em"}, {"inference": "svi"}, {"inference": "svi", "batch_size": 64}])
def test_a_resumed_run_equals_an_uninterrupted_one(faithful, tmp_path, options):
    model = lvm.models.GaussianMixture(3, priors=True if options["inference"] == "svi" else None)
    stay = {"tol": 0.0, "patience": 1000, "progress": False}
    batch = {k: v for k, v in options.items() if k == "batch_size"}
    whole = lvm.fit(model, faithful, max_epochs=12, seed=1, **stay, **options)
    half = lvm.fit(model, faithful, max_epochs=6, seed=1, **stay, **options)
    half.save(tmp_path / "half")
    resumed = lvm.load(tmp_path / "half").resume(faithful, max_epochs=6, **stay, **batch)
    assert resumed.history == whole.history
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


def test_checkpoints_are_written_on_the_way(faithful, tmp_path):
    seen = []

    def crash(run):
        if run.epochs_done == 120:
            seen.append(len(lvm.load(tmp_path / "run").history["loss"]))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        lvm.fit(
            lvm.models.GaussianMixture(3),
            faithful,
            seed=0,
            tol=0.0,
            max_epochs=200,
            checkpoint=tmp_path / "run",
            callbacks=[crash],
            progress=False,
        )
    assert seen == [100]
    resumed = lvm.load(tmp_path / "run").resume(faithful, max_epochs=5, tol=0.0, progress=False)
    assert len(resumed.history["loss"]) == 105


def test_save_replaces_a_fit_but_nothing_else(fit, tmp_path):
    fit.save(tmp_path / "fit")
    fit.save(tmp_path / "fit")
    assert {p.name for p in tmp_path.iterdir()} == {"fit"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a fit"):
        fit.save(tmp_path / "mine")
    (tmp_path / "fit" / "note.txt").write_text("mine too")
    with pytest.raises(FileExistsError, match="holds other files"):
        fit.save(tmp_path / "fit")
    assert (tmp_path / "fit" / "note.txt").exists()
    with pytest.raises(FileNotFoundError, match="no fit in"):
        lvm.load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"guide": "amortized"},
            TypeError,
            "expected guide to be a Pyro program, .* got 'amortized'. Leave it",
        ),
        ({"model": "VAE"}, TypeError, "expected model to be a Pyro program, the one .* got 'VAE'. Leave it"),
        ({"model": lvm.models.VAE}, TypeError, "expected model to be a Pyro program, .* got the class VAE. Leave it"),
        ({"inference": "svi"}, TypeError, r"expected inference to be an object with step\(\) .* got 'svi'. Leave it"),
        ({"inference": lvm.infer.SVI}, TypeError, "expected inference to be an object .* got the class SVI. Leave it"),
        ({"inference": lvm.infer.EM()}, ValueError, "expected inference to be SVI, by which .*; got EM. Leave it"),
    ],
)
def test_what_is_no_program_or_another_inference_is_refused(faithful, tmp_path, given, error, message):
    lvm.fit(lvm.models.GaussianMixture(2), faithful, None, "svi", max_epochs=1, progress=False).save(tmp_path / "fit")
    with pytest.raises(error, match=f"load: {message}"):
        lvm.load(tmp_path / "fit", **given)
    lvm.load(tmp_path / "fit", inference=lvm.infer.SVI())


def test_a_folder_that_is_no_fit_is_refused_before_training(faithful, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    epochs = []
    with pytest.raises(FileExistsError, match="is not a fit, or holds other files"):
        lvm.fit(lvm.models.GaussianMixture(2), faithful, checkpoint=tmp_path, callbacks=epochs.append, progress=False)
    assert not epochs


@pytest.mark.parametrize("folder", ["file", "file/fit", "file/some/fit"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(faithful, tmp_path, folder):
    (tmp_path / "file").write_text("precious")
    epochs = []
    with pytest.raises(OSError, match=r"save: .* Choose another folder") as caught:
        lvm.fit(
            lvm.models.GaussianMixture(2),
            faithful,
            checkpoint=tmp_path / folder,
            callbacks=epochs.append,
            progress=False,
        )
    assert isinstance(caught.value, FileExistsError if folder == "file" else NotADirectoryError)
    assert not epochs
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("folder", ["fit", "some/fit"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("os.access", lambda place, mode: False)  # who runs the tests may write anywhere
    with pytest.raises(PermissionError, match=f"got '{tmp_path}', which cannot"):
        check_folder(tmp_path / folder)
    assert not list(tmp_path.iterdir())


def test_samplers_and_guides_come_back(faithful, tmp_path):
    model = lvm.models.GaussianMixture(2, priors=True)
    x = faithful[:60]
    sampler = lvm.infer.MCMC(num_samples=5, warmup_steps=5, num_chains=1, max_tree_depth=3)
    for name, options in {
        "svi": {"guide": "multivariate-normal", "max_epochs": 5},
        "nuts": {"inference": sampler},
    }.items():
        fit = lvm.fit(model, x, seed=0, progress=False, **options)
        fit.save(tmp_path / name)
        again = lvm.load(tmp_path / name)
        assert torch.equal(again.log_likelihood(x), fit.log_likelihood(x))
        assert repr(again) == repr(fit)


def test_a_model_with_a_network_of_ones_own_takes_its_sizes_from_the_file(tmp_path):
    x = torch.bernoulli(torch.full((20, 6), 0.4))
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 6))
    fit = lvm.fit(lvm.models.VAE(2, decoder=decoder), x, max_epochs=2, seed=0, progress=False)
    fit.save(tmp_path)
    for sizes in ({}, {"data_dim": 6}):
        loaded = lvm.load(tmp_path, model=lvm.models.VAE(2, decoder=decoder, **sizes))
        assert torch.equal(loaded.transform(x), fit.transform(x))
        assert torch.equal(loaded.params["decoder.0.weight"], fit.params["decoder.0.weight"])
    wide = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 6))
    with pytest.raises(ValueError, match=r"a model whose 'decoder.0.weight' has shape \(4, 2\); got \(5, 2\)"):
        lvm.load(tmp_path, model=lvm.models.VAE(2, decoder=wide))
    with pytest.raises(ValueError, match=r"expected a VAE with likelihood='bernoulli', .*; got 'gaussian'"):
        lvm.load(tmp_path, model=lvm.models.VAE(2, decoder=decoder, likelihood="gaussian"))
    other = lvm.guides.AmortizedGaussian(lvm.models.VAE(3, 6), hidden=[4])
    with pytest.raises(ValueError, match=r"a guide whose '[\w.]+' has shape .*; got "):
        lvm.load(tmp_path, model=lvm.models.VAE(2, decoder=decoder), guide=other)


def test_a_model_without_sizes_is_loaded_with_those_of_the_file(fit, faithful, tmp_path):
    fit.save(tmp_path)
    loaded = lvm.load(tmp_path, model=lvm.models.GaussianMixture(2))
    assert torch.equal(loaded.log_likelihood(faithful), fit.log_likelihood(faithful))
    with pytest.raises(ValueError, match=r"load: expected a GaussianMixture with num_components=2, .*; got 3"):
        lvm.load(tmp_path, model=lvm.models.GaussianMixture(3))


def test_a_network_of_other_shapes_than_the_files_is_refused(tmp_path):
    x = torch.bernoulli(torch.full((12, 5), 0.4))
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5))
    lvm.fit(lvm.models.VAE(2, decoder=decoder), x, max_epochs=1, seed=0, progress=False).save(tmp_path)
    others = (
        (
            [*decoder[:2], nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)],
            r"'decoder.2.weight' has shape \(5, 6\); got \(6,",
        ),
        (
            [*decoder, nn.Tanh(), nn.Linear(5, 5)],
            r"lacks model:decoder.4.bias, .*, which this model has\. Pass the one",
        ),
        ([nn.Linear(2, 5)], r"'decoder.0.weight' has shape \(6, 2\); got \(5, 2\)"),
        ([nn.Linear(2, 6)], r"does not have model:decoder\.2\.bias, model:decoder\.2\.weight\. Pass"),
    )
    for layers, message in others:
        with pytest.raises(ValueError, match=message):
            lvm.load(tmp_path, model=lvm.models.VAE(2, decoder=nn.Sequential(*layers)))


def test_a_file_without_all_that_the_model_holds_is_refused(faithful, tmp_path):
    fit = lvm.fit(lvm.models.GaussianRBM(2), faithful, max_epochs=1, seed=0, progress=False)
    spread = fit.model.spread.clone()
    del fit.model.spread  # as if it had been saved when there was none
    fit.save(tmp_path)
    with pytest.raises(ValueError, match="load: the file lacks model:spread"):
        lvm.load(tmp_path)
    fit.model.register_buffer("spread", spread)
    fit.save(tmp_path)
    assert torch.equal(lvm.load(tmp_path).log_likelihood(faithful), fit.log_likelihood(faithful))
