"""What `pyro_lvm/_pyro` relies on in Pyro, checked one by one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam

import pyro_lvm as lvm
from pyro_lvm import _pyro
from pyro_lvm.infer.parameters import Parameters


def test_packed_tensors_carry_their_dimensions():
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=torch.zeros(3))

    trace = _pyro.enumerated_trace(model, 1, (), {})
    site = trace.nodes["x"]
    packed = _pyro.pack(torch.zeros(2, 3), site)
    assert set(_pyro.dims_of(packed)) == {trace.plate_to_symbol["data"], trace.nodes["z"]["infer"]["_enumerate_symbol"]}
    assert _pyro.plate_symbols(trace, site) == {trace.plate_to_symbol["data"]}


def test_a_parameter_of_a_module_sends_a_message_when_parameters_are_local():
    class Module(PyroModule):
        def __init__(self):
            super().__init__()
            self.a = PyroParam(torch.tensor(1.0))

        def forward(self):
            return self.a

    module = Module()
    _pyro.localise(module)
    with _pyro.module_local_store({"params": {}, "constraints": {}}):
        trace = pyro.poutine.trace(module).get_trace()
    assert "a" in trace.nodes
    assert "a" not in pyro.get_param_store()


def test_copying_an_autoguide_leaves_the_original_whole():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))

    guide = AutoNormal(model)
    _, twin = _pyro.copy_programs(model, guide)
    with pyro.get_param_store().scope():
        assert "a" in guide()
        assert "a" in twin()


def test_validation_is_restored():
    before = pyro.settings.get("validate_infer")
    with pytest.raises(RuntimeError), _pyro.validation(not before):
        raise RuntimeError
    assert pyro.settings.get("validate_infer") == before


def test_the_store_knows_the_constraints_of_modules_in_it():
    model = lvm.models.GaussianMixture(2, data_dim=1)
    with pyro.get_param_store().scope():
        for _ in range(2):
            with Parameters() as parameters:
                model(size=3)
            assert parameters.found["weights"].constraint is dist.constraints.simplex


def test_a_program_may_be_enumerated_inside_of_another():
    def inner():
        return pyro.sample("inner", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})

    def model():
        first = pyro.sample("first", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with pyro.poutine.block(), _pyro.own_enumeration():
            _pyro.enumerated_trace(inner, 0, (), {})
        second = pyro.sample("second", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        return first, second

    first, second = _pyro.enumerated_trace(model, 0, (), {}).nodes["_RETURN"]["value"]
    assert (first.shape, second.shape) == ((2,), (3, 1))


def test_the_plates_and_scales_inside_of_a_handler_can_be_entered_anew():
    class Where(pyro.poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            self.found = _pyro.enclosing(self)

    def model():
        with pyro.plate("data", 3), pyro.poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pyro.poutine.trace() as trace, pyro.plate("outside", 2, dim=-2):
        with Where() as where:
            model()
        with where.found[0], where.found[1]:
            pyro.sample("again", dist.Normal(0.0, 1.0))
    assert len(where.found) == 2
    for key in ("scale", "cond_indep_stack"):
        assert trace.trace.nodes["x"][key] == trace.trace.nodes["again"][key]


class Holder(PyroModule):
    """A program with a network."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())

    def forward(self):
        return _pyro.network(self, "net")


class Outer(PyroModule):
    def __init__(self):
        super().__init__()
        self.inner = Holder()

    def forward(self):
        return self.inner()


@pytest.mark.parametrize("stored", [False, True], ids=["in the module", "in the store"])
def test_a_network_sends_a_message_for_each_parameter_to_whoever_listens(stored):
    with pyro.settings.context(module_local_params=not stored), pyro.get_param_store().scope():
        for program, at in ((Holder(), "net"), (Outer(), "inner.net")):
            trace = pyro.poutine.trace(program).get_trace()
            assert [name for name, site in trace.nodes.items() if site["type"] == "param"] == [
                f"{at}.0.weight",
                f"{at}.0.bias",
            ]
            with Parameters() as parameters:
                program()
            assert parameters.found[f"{at}.0.weight"].unconstrained is program().get_submodule("0").weight
            with Parameters() as hidden, pyro.poutine.block(hide_types=["param"]):
                program()
            assert not hidden.found


def test_a_network_outside_of_its_program_sends_nothing():
    holder = Holder()
    with Parameters() as parameters:
        assert _pyro.network(holder, "net") is holder._modules["net"]
    assert not parameters.found


def test_a_handler_of_networks_is_told_them_whole_unless_another_listens():
    class Whole(Parameters):
        def __init__(self):
            super().__init__()
            self.networks = []

        def take_network(self, prefix, module):
            self.networks.append((prefix, module))

    with pyro.settings.context(module_local_params=True):
        holder = Holder()
        with Whole() as handler, pyro.plate("data", 3):
            net = holder()
        assert handler.networks == [("net", net)]
        assert not handler.found
        with Whole() as handler:
            pyro.poutine.trace(holder).get_trace()
        assert not handler.networks
        assert list(handler.found) == ["net.0.weight", "net.0.bias"]


def test_handlers_that_see_sample_sites():
    class Params(pyro.poutine.messenger.Messenger):
        def _pyro_param(self, msg):
            pass

    class Samples(pyro.poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            pass

    with Params(), Samples() as samples, pyro.poutine.scale(scale=2.0) as scale:
        assert _pyro.sample_listeners() == [samples, scale]
        with pyro.plate("data", 3), pyro.poutine.trace():
            assert len(_pyro.sample_listeners()) == 4
    assert _pyro.sample_listeners() == []


def test_parameters_read_inside_of_a_module_send_messages():
    module = PyroModule()
    module.w = PyroParam(torch.ones(()), constraint=dist.constraints.positive)
    with pyro.poutine.trace(param_only=True) as tracer:
        module.w.exp()
        assert "w" not in tracer.trace
        with _pyro.reading(module):
            module.w.exp()
    assert "w" in tracer.trace


def test_constrained_values_need_no_run():
    module = PyroModule()
    module.part = PyroModule()
    module.part.w = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)
    with Parameters() as seen:
        assert _pyro.constrained_values(module)["part.w"] == pytest.approx(2.0)
    assert not seen.found
    assert _pyro.constrained_values(print) == {}


def test_autoguides_name_what_they_draw_for_a_site_alone():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Gamma(2.0, 1.0))

    alone, together = (kind(model) for kind in (autoguide.AutoNormal, autoguide.AutoMultivariateNormal))
    for guide, drawn in ((alone, {"z" + _pyro.DRAWN_ALONE, "w" + _pyro.DRAWN_ALONE}), (together, None)):
        sites = pyro.poutine.trace(guide).get_trace().nodes.values()
        auxiliary = {s["name"] for s in sites if s["type"] == "sample" and s["infer"].get("is_auxiliary")}
        assert auxiliary == drawn if drawn else len(auxiliary) == 1
        assert all(type(s["fn"]) is dist.Delta for s in sites if s["name"] in ("z", "w"))


def test_what_handlers_were_wrapped_around():
    module = PyroModule()
    guide = autoguide.AutoNormal(pyro.poutine.block(pyro.infer.config_enumerate(module)))
    assert _pyro.made_from(guide) is module
    assert _pyro.without_handlers(module) is module
    copied, twin = _pyro.copy_programs(module, guide)
    assert copied is not module
    assert _pyro.made_from(twin) is copied
    assert _pyro.made_from(print) is None


def test_what_is_being_replayed():
    @pyro.poutine.condition(data={"x": torch.zeros(())})
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, 2.0))
        return [_pyro.replayed(name) for name in ("x", "z", "q")]

    trace = pyro.poutine.trace(program).get_trace()
    assert program() == [None, None, None]
    assert pyro.poutine.replay(program, trace=trace)() == [None, trace.nodes["z"], None]
