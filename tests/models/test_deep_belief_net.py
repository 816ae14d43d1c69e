"""Deep belief nets: density, draws and gradients by enumeration, pretraining, and what they refuse."""

import itertools

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import pyro_lvm as lvm
from pyro_lvm.distributions import RBM
from pyro_lvm.infer import SVI, ContrastiveDivergence, WakeSleep

ERRORS = 4


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def net(hidden=(4, 3, 2), d=5, factor=2.0):
    """A net and its guide with weights that matter, in float64."""
    torch.manual_seed(2)
    model = lvm.models.DeepBeliefNet(hidden, d)
    guide = lvm.guides.RecognitionNet(model)
    with torch.no_grad():
        for layer in (*model.decoder, *guide.recognition):
            layer.weight.mul_(factor)
            layer.bias.normal_()
        for name, shape in (("weight", hidden[-2:]), ("visible_bias", hidden[-2]), ("hidden_bias", hidden[-1])):
            getattr(model.top, name).unconstrained().data.copy_(torch.randn(shape))
    return model.double(), guide.double()


def top_table(model):
    """Log-probability of every pair of states of the top two layers, from the energy in plain coordinates."""
    top = model.top
    w, b, c = top.weight, top.visible_bias, top.hidden_bias
    v, u = states(len(b)) - top.visible_offset, states(len(c)) - c.sigmoid()
    table = (v @ b)[:, None] + u @ c + v @ w @ u.T
    return table - table.flatten().logsumexp(0)


def bernoulli(layer, below, above):
    """Log-probability of each of some states given each of others, (given, states)."""
    logits = layer(below)[:, None].expand(-1, len(above), -1)
    return -cross_entropy(logits, above.expand(len(below), -1, -1), reduction="none").sum(-1)


def joint(model, x):
    """log p(x, h1, h2) of two drawn layers, shape (states of h2, states of h1, rows)."""
    h1, h2 = states(model.hidden[0]), states(model.hidden[1])
    middle, below = bernoulli(model.decoder[1], h2, h1), bernoulli(model.decoder[0], h1, x)
    return top_table(model).logsumexp(1)[:, None, None] + middle[..., None] + below


def rows(n=12, d=5):
    return torch.bernoulli(torch.full((n, d), 0.4), generator=torch.Generator().manual_seed(0)).double()


def agrees(draws, exact):
    """Whether the mean of draws (r, p) is within so many standard errors of the exact vector, in each entry."""
    draws = torch.stack(draws)
    return bool(((draws.mean(0) - exact).abs() <= ERRORS * draws.std(0) / len(draws) ** 0.5 + 1e-9).all())


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.mark.filterwarnings("ignore:evidence. .* Pareto")  # k-hat means little where weights take few values
def test_evidence_equals_enumeration():
    x = rows()
    fit = lvm.fit(lvm.models.DeepBeliefNet((4, 3, 2)), x, max_epochs=1, seed=0, progress=False)
    model, _ = net()
    fit.model.load_state_dict(model.state_dict())
    found = fit.evidence(x, num_samples=1000)
    with torch.no_grad():
        exact = joint(fit.model, x).flatten(0, 1).logsumexp(0)
    assert float(((found.values - exact).abs() / found.standard_error).max()) < ERRORS
    assert float(found.standard_error.max()) < 0.2


def test_draws_follow_the_enumerated_law():
    model, _ = net(d=4)
    patterns = states(4)
    with torch.no_grad():
        law = joint(model, patterns).flatten(0, 1).logsumexp(0).exp()
        assert float(law.sum()) == pytest.approx(1, abs=1e-9)
        share = (model(size=20_000)[:, None] == patterns).all(-1).double().mean(0)
    assert float(((share - law).abs() / (law * (1 - law) / 20_000).sqrt()).max()) < ERRORS


def gradients(objective, x, program, repeats, hidden=(3, 3, 2)):
    """Gradients of the objective for the parameters of a part of the model or of the guide."""
    model, guide = net(hidden, x.shape[1])
    part = program(model, guide)
    found = []
    for _ in range(repeats):
        objective.loss_and_grads(model, guide, x)
        found.append(flat([p.grad.clone() for p in part.parameters()]))
        for p in (*model.parameters(), *guide.parameters()):
            p.grad = None
    return model, guide, part, found


@pytest.mark.parametrize("persistent", [False, True])
def test_the_gradient_of_the_prior_equals_the_exact_one(persistent):
    """Of the expected log-prior under the guide, all states of both drawn layers listed."""
    x = rows(6, 4).repeat(20, 1)
    objective = ContrastiveDivergence(num_steps=12, persistent=persistent, base=WakeSleep(sleep_every=10**6))
    objective.load_state_dict({"chains": {}, "base": {"steps": 1}})  # awake only
    model, guide, part, found = gradients(objective, x, lambda model, guide: model.top, 60)
    with torch.no_grad():
        h1 = states(3)
        up = -cross_entropy(
            guide.recognition[0](x)[:, None].expand(-1, 8, -1), h1.expand(len(x), -1, -1), reduction="none"
        )
        top = guide.recognition[1](h1)
        further = -cross_entropy(top[:, None].expand(-1, 8, -1), h1.expand(8, -1, -1), reduction="none")
        weights = up.sum(-1).exp().sum(0) @ further.sum(-1).exp()  # how many rows are expected in each state of h2
    exact = flat(torch.autograd.grad(-(weights * top_table(model).logsumexp(1)).sum(), list(part.parameters())))
    assert agrees(found, exact)


@pytest.mark.parametrize("persistent", [False, True])
def test_dreams_come_from_the_chains(persistent):
    """So the guide's gradient is that of its cross-entropy under the model, all states listed."""
    x = rows(6, 4).repeat(20, 1)
    objective = ContrastiveDivergence(num_steps=12, persistent=persistent, base=WakeSleep())
    model, guide, part, found = gradients(objective, x, lambda model, guide: guide, 60)
    h, v = states(3), states(4)
    with torch.no_grad():
        law = joint(model, v).exp()  # (h2, h1, x)
    one, two = bernoulli(guide.recognition[0], v, h), bernoulli(guide.recognition[1], h, h)
    expected = (law.sum(0).T * one).sum() + (law.sum(-1).T * two).sum()
    exact = flat(torch.autograd.grad(-len(x) * expected, list(part.parameters())))
    assert agrees(found, exact)


def bars():
    return lvm.datasets.bars(4).sample(400, torch.Generator().manual_seed(0))


def test_weights_of_several_draws_do_not_see_the_noise_of_the_chains():
    """The guide has the mean gradient that the exact normalizer gives it."""
    x = rows(6, 4).repeat(20, 1)
    many = WakeSleep(num_samples=5, num_dreams=0, wake_guide=1.0)
    few = ContrastiveDivergence(persistent=True, num_chains=1, base=many)
    exact, found = (
        torch.stack(gradients(objective, x, lambda model, guide: guide, repeats, (10, 3))[-1])
        for objective, repeats in ((many, 80), (few, 40))
    )
    direction = exact[40:].mean(0)  # in which a difference would show
    one, other = exact[:40] @ direction, found @ direction
    assert float(one.mean()) > 10 * float(one.std()) / 40**0.5
    assert abs(float(one.mean() - other.mean())) < ERRORS * float((one.var() + other.var()) / 40) ** 0.5


def machines():
    return SVI(loss=ContrastiveDivergence(persistent=True, num_chains=200), learning_rate=0.05, schedule="linear")


def test_layers_raise_the_bound():
    """The third by as much as its law fits the guide's draws better than the second's: all states are listed."""
    x = bars()
    options = {"machine_inference": machines(), "seed": 0, "batch_size": 100, "progress": False}
    one = lvm.fit(lvm.models.RBM(6), x, inference=machines(), seed=0, batch_size=100, max_epochs=60, progress=False)
    two = lvm.greedy_pretrain(lvm.models.DeepBeliefNet((6, 4)), x, below=one, max_epochs=60, **options)
    three = lvm.greedy_pretrain(lvm.models.DeepBeliefNet((6, 4, 3)), x, below=two, max_epochs=20, **options)
    x = x.double()
    for program in (two.model, three.model, three.guide):
        program.double()
    with torch.no_grad():
        h1, h2 = states(6), states(4)
        first = bernoulli(three.guide.recognition[0], x, h1)
        both = first[..., None] + bernoulli(three.guide.recognition[1], h1, h2)
        old = bernoulli(two.model.decoder[0], h1, x).T + top_table(two.model).logsumexp(1)
        second = (first.exp() * (old - first)).sum(1).mean()
        third = (both.exp() * (joint(three.model, x).permute(2, 1, 0) - both)).sum((1, 2)).mean()
        better = top_table(three.model).logsumexp(1) - top_table(two.model).logsumexp(0)
        gain = (both.exp().sum(1) @ better).mean()
    assert one.score(x.float()) < float(second)
    assert float(third - second) == pytest.approx(float(gain), abs=1e-6)


def test_a_placed_machine_gives_its_conditionals_and_the_top_machine_stays_whole():
    torch.manual_seed(0)
    model = lvm.models.DeepBeliefNet((4, 3), 5)
    guide = lvm.guides.RecognitionNet(model)
    machines = [lvm.models.RBM(4, 5), lvm.models.RBM(3, 4)]
    for level, machine in enumerate(machines):
        for parameter in machine.parameters():
            torch.nn.init.normal_(parameter)
        model.place(level, machine)
        guide.place(level, machine)
    v, h = states(5).float(), states(4).float()
    torch.testing.assert_close(model.decoder[0](h), machines[0].law().visible_field(h))
    torch.testing.assert_close(guide.recognition[0](v), machines[0].law().hidden_logits(v))
    torch.testing.assert_close(model.top.law().log_prob(h), machines[1].law().log_prob(h))


def test_a_machine_wide_enough_starts_as_the_one_below_upside_down():
    torch.manual_seed(0)
    net, below = lvm.models.DeepBeliefNet((3, 4), 4), lvm.models.RBM(3, 4)
    for parameter in below.parameters():
        torch.nn.init.normal_(parameter)
    below.visible_offset.copy_(torch.rand(4))
    machine, v, h = net.machine(1), states(4).float(), states(3).float()
    machine.initialize(torch.bernoulli(torch.full((50, 3), 0.3)))
    net.prepare(machine, below)
    law = below.law()
    with torch.no_grad():
        conditional = -cross_entropy(
            law.hidden_logits(v)[:, None].expand(-1, 8, -1), h.expand(16, -1, -1), reduction="none"
        ).sum(-1)
        hidden = (law.log_prob(v)[:, None] + conditional).logsumexp(0)
        torch.testing.assert_close(machine.law().log_prob(h), hidden)
    narrow = lvm.models.RBM(2, 3)
    before = narrow.weight.clone()
    net.prepare(narrow, below)
    assert torch.equal(narrow.weight, before)


def pretrained(hidden=(4, 3), x=None, **options):
    options = {"max_epochs": 2, "seed": 0, "progress": False, **options}
    return lvm.greedy_pretrain(lvm.models.DeepBeliefNet(hidden), bars() if x is None else x, **options)


def test_taking_over_lower_layers_changes_nothing_in_them():
    two = pretrained((5, 4))
    three = pretrained((5, 4, 3), below=two)
    for ours, theirs in ((three.model.decoder, two.model.decoder), (three.guide.recognition, two.guide.recognition)):
        assert torch.equal(ours[0].weight, theirs[0].weight)
        assert torch.equal(ours[0].bias, theirs[0].bias)
    h = states(5).float()
    torch.testing.assert_close(
        three.model.decoder[1](states(4).float()), two.model.top.law().visible_field(states(4).float())
    )
    torch.testing.assert_close(three.guide.recognition[1](h), two.model.top.law().hidden_logits(h))


def test_one_seed_gives_one_net_and_leaves_the_callers_random_state_alone():
    before = torch.get_rng_state()
    one, other = pretrained(), pretrained()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one.params[name], value) for name, value in other.params.items())
    assert one.stopped == "pretrained"


def test_a_pretrained_net_is_saved_and_fine_tuned_exactly(tmp_path):
    fit, x = pretrained((4, 3, 2)), bars()
    fit.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert isinstance(loaded.inference.objective.base, WakeSleep)
    for net in (fit, loaded):
        net.resume(x, max_epochs=2, batch_size=150, progress=False)
    loaded.save(tmp_path / "fit")
    loaded = lvm.load(tmp_path / "fit")
    assert loaded.inference.objective.base.steps == 6
    for net in (fit, loaded):
        net.resume(x, max_epochs=2, batch_size=150, progress=False)
    assert fit.history == loaded.history
    assert all(torch.equal(loaded.params[name], value) for name, value in fit.params.items())


def test_an_interruption_keeps_the_machines_so_far():
    fit = pretrained(callbacks=interrupt)
    assert fit.stopped == "interrupted in layer 1 of 2"
    assert all(bool(value.isfinite().all()) for value in fit.params.values())


def test_an_interruption_between_machines_keeps_those_so_far(monkeypatch):
    monkeypatch.setattr(lvm.models.DeepBeliefNet, "prepare", interrupt)
    fit = pretrained((4, 3))
    assert fit.stopped == "interrupted in layer 2 of 2"
    monkeypatch.undo()
    whole = pretrained((4, 3))
    for program, other in ((fit.model, whole.model), (fit.guide, whole.guide)):
        for name in {"decoder", "recognition"} & set(dict(program.named_children())):
            torch.testing.assert_close(getattr(program, name)[0].weight, getattr(other, name)[0].weight)


@pytest.mark.parametrize("interrupted", [0, 1, 3, 4, 8, 9])
def test_an_interrupted_pretraining_is_finished_as_if_it_had_not_been(interrupted, tmp_path):
    """After each of some epochs of three machines, in memory and from a file; 0 before the first."""
    x, epochs = bars()[:150], []

    def interrupt(run):
        epochs.append(run)
        if len(epochs) == interrupted:
            raise KeyboardInterrupt

    whole = pretrained((4, 5, 3), x, max_epochs=3)
    half = pretrained((4, 5, 3), x, max_epochs=3, callbacks=interrupt)
    half.save(tmp_path / "half")
    loaded = lvm.load(tmp_path / "half")
    for fit in (whole, half, loaded):
        fit.resume(x, max_epochs=2, progress=False)
        assert fit.pretraining is None
        assert fit.history == whole.history
        assert all(torch.equal(fit.params[name], value) for name, value in whole.params.items())


@pytest.mark.parametrize("of_a_net", [False, True])
def test_a_pretraining_interrupted_before_its_first_machine_is_finished(of_a_net, tmp_path, monkeypatch):
    """The machine below, from which the first starts, is in the file too."""
    x = bars()[:150]
    hidden = (16, 16, 16) if of_a_net else (16, 16)
    below = (
        pretrained((16, 16), x) if of_a_net else lvm.fit(lvm.models.RBM(16), x, max_epochs=2, seed=0, progress=False)
    )
    whole = pretrained(hidden, x, below=below)
    with monkeypatch.context() as patch:
        patch.setattr(lvm.models.DeepBeliefNet, "prepare", interrupt)
        half = pretrained(hidden, x, below=below)
    half.save(tmp_path / "half")
    for fit in (whole, lvm.load(tmp_path / "half")):
        fit.resume(x, max_epochs=1, progress=False)
        assert all(torch.equal(fit.params[name], value) for name, value in whole.params.items())


def test_a_pretraining_by_parts_of_ones_own_is_not_resumed_from_a_file(tmp_path):
    own = SVI(optimizer=torch.optim.SGD, loss=ContrastiveDivergence())
    half = pretrained(machine_inference=own, callbacks=interrupt)
    half.save(tmp_path / "half")
    with pytest.raises(
        ValueError, match=r"resume: the layers .* parts of your own, .* Call lvm\.greedy_pretrain again"
    ):
        lvm.load(tmp_path / "half").resume(bars(), max_epochs=1, progress=False)


def interrupt(*_):
    raise KeyboardInterrupt


def test_chains_are_long_only_where_rows_are_drawn(monkeypatch):
    steps, gibbs = [], RBM.gibbs
    monkeypatch.setattr(RBM, "gibbs", lambda law, value, count=1: steps.append(count) or gibbs(law, value, count))
    fit = pretrained((22, 21), x=bars().repeat(1, 2))
    fit.resume(bars().repeat(1, 2), max_epochs=1, progress=False)
    fit.evidence(bars()[:3].repeat(1, 2), num_samples=10)
    fit.to_arviz(bars()[:3].repeat(1, 2))
    assert max(steps) == 1
    fit.sample(2)
    assert max(steps) == 1000


def test_what_is_no_deep_belief_net_is_refused():
    with pytest.raises(ValueError, match=r"DeepBeliefNet: expected at least 2 hidden layers; got hidden=\(4,\)"):
        lvm.models.DeepBeliefNet((4,))
    with pytest.raises(TypeError, match="greedy_pretrain: expected a model made of machines"):
        lvm.greedy_pretrain(lvm.models.SigmoidBeliefNet((4, 3)), bars())
    with pytest.raises(TypeError, match="greedy_pretrain: expected a guide that takes machines"):
        pretrained(guide=lambda x: None)
    with pytest.raises(ValueError, match=r"greedy_pretrain: expected below .* got 16 columns and layers \(5, 3\)"):
        pretrained((4, 3, 2), below=pretrained((5, 3)))
    for machine in (lvm.models.GaussianRBM(3), lvm.models.SigmoidBeliefNet((3,))):
        below = lvm.fit(machine, bars().float(), max_epochs=1, seed=0, progress=False)
        with pytest.raises(ValueError, match=f"or of a RBM; got {type(machine).__name__}"):
            pretrained(below=below)
    with pytest.raises(ValueError, match=r"expected zeros and ones; got 0\.5"):
        pretrained(x=bars() * 0.5)
    with pytest.raises(ValueError, match="expected at least two rows"):
        pretrained(x=bars()[:1])


def test_the_rows_it_learned_from_are_known():
    fit = pretrained()
    assert len(fit.seen) == len(bars().unique(dim=0))


def test_constant_columns_and_float64():
    x = bars().double()
    x[:, 0] = 1
    fit = pretrained(x=x).resume(x, max_epochs=2, progress=False)
    assert all(value.dtype == torch.float64 and bool(value.isfinite().all()) for value in fit.params.values())


def test_a_large_top_needs_the_chains():
    model = lvm.models.DeepBeliefNet((22, 21), 4)
    with pytest.raises(ValueError, match=r"lvm\.infer\.ContrastiveDivergence"):
        WakeSleep().loss_and_grads(model, lvm.guides.RecognitionNet(model), rows(3, 4).float())
    fit = lvm.fit(lvm.models.DeepBeliefNet((22, 21)), rows(30, 4).float(), max_epochs=2, seed=0, progress=False)
    assert "normalizer of 'h1' by AIS" in fit.evidence(rows(3, 4).float(), num_samples=2).estimator


def test_hidden_units_are_drawn_anew_for_every_epoch():
    """The second machine would else learn the noise of one draw by heart, and lower the bound by nats."""
    x = torch.bernoulli(torch.full((20, 6), 0.5), generator=torch.Generator().manual_seed(0))
    options = {"seed": 0, "batch_size": 20, "max_epochs": 300, "progress": False}
    first = lvm.fit(lvm.models.RBM(10), x, inference=machines(), **options)
    fit = lvm.greedy_pretrain(
        lvm.models.DeepBeliefNet((10, 10)), x, machine_inference=machines(), below=first, **options
    )
    h = states(10).float()
    with torch.no_grad():
        up, down = bernoulli(fit.guide.recognition[0], x, h), bernoulli(fit.model.decoder[0], h, x).T
        bound = (up.exp() * (down + fit.model.top.law().log_prob(h) - up)).sum(1).mean()
    assert float(bound) > first.score(x) - 0.1


@pytest.mark.parametrize(("rows", "steps"), [(60, 334 * 6), (70 * 100, 30 * 70)])
def test_few_rows_are_passed_over_until_units_differ(rows, steps, monkeypatch):
    seen = []
    monkeypatch.setattr(SVI, "step", lambda *_, **__: seen.append(1) or 0.0)
    x = bars()[:1].repeat(rows, 1)
    x[0] = 1 - x[0]
    lvm.greedy_pretrain(
        lvm.models.DeepBeliefNet((2, 2)), x, batch_size=10 if rows == 60 else 100, seed=0, progress=False
    )
    assert len(seen) == 2 * steps
