"""Networks of the user's that behave otherwise in training: they learn in steps, and serve everywhere else."""

import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch.utils.data import DataLoader, TensorDataset

import pyro_lvm as lvm
from pyro_lvm.training.data import as_arguments

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def moody():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))


def draw(x, decode):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decode(z.expand(len(x), 2)), 1.0).to_event(1), obs=x)


class Program(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = moody()

    def forward(self, x):
        draw(x, self.decoder)


def function():
    network = moody()

    def model(x):
        draw(x, pyro.module("decoder", network))

    model.decoder = network
    return model


class Holder:
    def __init__(self):
        self.decoder = moody()

    def model(self, x):
        draw(x, pyro.module("decoder", self.decoder))


class Modular(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = moody()

    def model(self, x):
        pyro.module("all", self)
        draw(x, self.decoder)


def under_a_handler():
    program = Program()
    wrapped = pyro.poutine.scale(program, 1.0)
    wrapped.decoder = program.decoder
    return wrapped


def hidden():
    network = moody()

    held = types.SimpleNamespace(deep=[network])

    def model(x, given=(held,)):
        def inner():
            return pyro.module("decoder", given[0].deep[0])

        draw(x, inner())

    model.decoder = network
    return model


PROGRAMS = {
    "module": Program,
    "under a handler": under_a_handler,
    "in a list of an argument": hidden,
    "function": function,
    "method": lambda: Holder().model,
    "method of a module": lambda: Modular().model,
}


def decoder_of(program):
    return getattr(program, "decoder", None) or program.__self__.decoder


def buffers(fit):
    return {name: tensor.clone() for name, tensor in fit.tensors().items() if "running" in name or "tracked" in name}


def guide(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def train(program, **options):
    options = {"inference": "svi", "batch_size": 20, "seed": 0, "max_epochs": 5, "progress": False, **options}
    return lvm.fit(program, X, guide=guide, **options)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_networks_learn_in_steps_and_nowhere_else(kind, tmp_path):
    program = PROGRAMS[kind]()
    before = {name: value.clone() for name, value in decoder_of(program).state_dict().items()}
    fit = train(program, validation=X[:20])
    learned = buffers(fit)
    (steps,) = (int(value) for name, value in learned.items() if "tracked" in name)
    assert steps in range(3, 16, 3)  # at the end of the best epoch
    one = fit.evidence(X[:1], num_samples=20)
    fit.evidence(X, num_samples=20)
    assert bool(torch.isfinite(one.values).all())
    assert all(torch.equal(value, learned[name]) for name, value in buffers(fit).items())
    assert decoder_of(program).training
    assert all(torch.equal(value, before[name]) for name, value in decoder_of(program).state_dict().items())

    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit", model=program, guide=guide)
    assert all(torch.equal(value, learned[name]) for name, value in buffers(loaded).items())
    resumed = loaded.resume(X, max_epochs=1, progress=False)
    again = fit.resume(X, max_epochs=1, progress=False)
    assert resumed.history == again.history
    assert all(torch.equal(value, buffers(again)[name]) for name, value in buffers(resumed).items())


def test_a_network_that_serves_goes_on_serving():
    program = Program()
    program.decoder.eval()
    fit = train(program)
    assert int(fit.model.decoder[1].num_batches_tracked) == 0
    assert not fit.model.decoder.training


class Hidden(Program):
    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[torch.nn.Sequential](torch.nn.Linear(2, 3), PyroModule[torch.nn.Linear](3, 4))


def test_layers_that_pyro_is_not_told_of_are_named():
    with pytest.warns(UserWarning, match=r"decoder.0.weight, decoder.0.bias will not be trained"):
        train(Hidden())


def test_networks_that_callbacks_call_are_left_alone():
    other, seen = torch.nn.Dropout(0.5), []

    def watch(run):
        other(torch.ones(3))
        seen.append(other.training)
        run.result().evidence(X[:5], num_samples=2)

    train(Program(), callbacks=watch)
    assert seen == [True] * 5


def test_means_that_a_network_replaces_are_the_fits_own():
    class Average(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, z):
            if self.training:
                self.mean = 0.9 * self.mean + 0.1
            return torch.zeros(len(z), 4) + self.mean

    network = Average()

    def model(x):
        draw(x, network)

    fits = [train(model) for _ in range(2)]
    assert float(network.mean) == 0
    for fit in fits:
        (mean,) = (tensor for name, tensor in fit.tensors().items() if name.endswith("mean"))
        assert float(mean) == pytest.approx(1 - 0.9**15)


class Sited(PyroModule):
    """Parameters of its own that no attribute holds."""

    def forward(self, x):
        mean = pyro.param("mean", torch.zeros(4))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def test_parameters_that_a_module_makes_as_it_runs_go_into_files(tmp_path):
    fit = lvm.fit(Sited(), X + 3, inference="svi", max_epochs=200, seed=0, progress=False)
    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit", model=Sited())
    assert float((fit.params["mean"] - (X + 3).mean(0)).abs().max()) < 2
    assert torch.equal(loaded.params["mean"], fit.params["mean"])
    assert torch.equal(loaded.log_likelihood(X), fit.log_likelihood(X))


def test_a_network_with_more_than_the_file_is_refused(tmp_path):
    fit = train(Program())
    fit.save(tmp_path / "fit")
    larger = Program()
    larger.decoder.append(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"has, and the file has not, model:decoder\.3"):
        lvm.load(tmp_path / "fit", model=larger, guide=guide)


def normalising():
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 8))


def fit_vae(x, **options):
    torch.manual_seed(0)
    model = lvm.models.VAE(2, likelihood="gaussian", decoder=normalising())
    return lvm.fit(model, x, seed=0, progress=False, max_epochs=2, **options)


def test_a_decoder_normalises_over_all_draws_of_all_rows():
    torch.manual_seed(0)
    network = normalising()
    model = lvm.models.VAE(2, data_dim=4, likelihood="gaussian", decoder=network)
    z = torch.randn(3, 8, 2)  # as many rows as channels: torch would take one for the other
    torch.testing.assert_close(
        model.decode(z).mean, network(z.reshape(24, 2))[:, :4].reshape(3, 8, 4), rtol=1e-6, atol=1e-6
    )
    fit = fit_vae(X, inference="importance-weighted")
    assert torch.isfinite(fit.log_likelihood(X)).all()


def test_a_row_left_over_joins_the_last_batch():
    steps = []
    fit_vae(X[:41], batch_size=20, callbacks=lambda run: steps.append(run.inference._steps))
    assert steps == [2, 4]
    for size, sizes in ((1, [1, 1, 1]), (2, [3]), (3, [3]), (4, [3])):
        rows = as_arguments(X[:3])
        assert [batch.num_rows for batch in rows.batches(size)] == sizes
        assert rows.num_batches(size) == len(sizes)
    with pytest.raises(ValueError, match=r"SVI: expected batches of two rows .*drop_last"):
        fit_vae(DataLoader(TensorDataset(X[:41]), batch_size=20))


def test_lazy_layers():
    def lazy(width):
        return torch.nn.Sequential(torch.nn.LazyLinear(5), torch.nn.ReLU(), torch.nn.LazyLinear(width))

    model = lvm.models.VAE(2, 4, "gaussian", decoder=lazy(8))
    guide_of_rows = lvm.guides.AmortizedGaussian(model, encoder=lazy(4))
    fit = lvm.fit(model, X, guide_of_rows, max_epochs=2, seed=0, progress=False)
    assert fit.params["decoder.0.weight"].shape == (5, 2)
    network = torch.nn.LazyLinear(4)
    with pytest.raises(ValueError, match="fit: expected networks of known sizes; got a lazy layer"):
        lvm.fit(lambda x: draw(x, pyro.module("net", network)), X, guide, progress=False)


NORMALISES = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))


def several_draws(x):
    network = pyro.module("net", NORMALISES)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(network(z), 1.0).to_event(1), obs=x)


def test_draws_side_by_side_of_a_layer_that_takes_rows_only():
    side_by_side, in_turn = (lvm.infer.ImportanceWeighted(3, vectorize=several) for several in (True, False))
    with pytest.raises(ValueError, match=r"expected 4 channels in the second axis .* got 60.*vectorize=False"):
        lvm.fit(several_draws, X, guide, lvm.infer.SVI(loss=side_by_side), max_epochs=2, seed=0, progress=False)
    fit = lvm.fit(several_draws, X, guide, lvm.infer.SVI(loss=in_turn), max_epochs=2, seed=0, progress=False)
    assert len(fit.history["loss"]) == 2
