"""Sigmoid belief nets: the likelihood by enumeration, and what they refuse."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import pyro_lvm as lvm


def states(units):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)))


def log_likelihood(model, x):
    """Log-likelihood of each row, every state of two hidden layers listed."""
    values = []
    with torch.no_grad():
        for h2 in states(model.hidden[1]).to(x):
            for h1 in states(model.hidden[0]).to(x):
                above = -cross_entropy(model.top_bias, h2, reduction="sum")
                middle = -cross_entropy(model.decoder[1](h2), h1, reduction="sum")
                rows = -cross_entropy(model.decoder[0](h1).expand_as(x), x, reduction="none").sum(-1)
                values.append(above + middle + rows)
    return torch.stack(values).logsumexp(0)


def fitted(x, epochs=5, batch_size=None, hidden=(3, 2)):
    return lvm.fit(
        lvm.models.SigmoidBeliefNet(hidden), x, seed=0, max_epochs=epochs, batch_size=batch_size, progress=False
    )


def rows(n=40, d=6):
    return torch.bernoulli(torch.full((n, d), 0.4), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:evidence. .* Pareto")  # k-hat means little where weights take 32 values
def test_importance_weighted_evidence_equals_enumeration():
    fit = fitted(rows(), epochs=30)
    with torch.no_grad():
        for layer in fit.model.decoder:
            layer.weight.mul_(2)  # layers that matter
    x = rows()[:12]
    found = fit.evidence(x, num_samples=4000)
    gap = (found.values - log_likelihood(fit.model, x)).abs() / found.standard_error
    assert float(gap.max()) < 4
    assert float(found.standard_error.max()) < 0.1


def test_draws_follow_the_enumerated_law():
    torch.manual_seed(1)
    model = lvm.models.SigmoidBeliefNet((3, 2), data_dim=4)
    with torch.no_grad():
        for layer in model.decoder:
            layer.weight.mul_(4)
    patterns = states(4)
    law = log_likelihood(model, patterns).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        share = (model(size=20_000)[:, None] == patterns).all(-1).float().mean(0)
    assert float(((share - law).abs() / (law * (1 - law) / 20_000).sqrt()).max()) < 4


def test_batches_of_one_and_a_last_batch_of_one():
    for batch_size in (1, 4):
        fit = fitted(rows(5), epochs=2, batch_size=batch_size)
        assert all(bool(p.isfinite().all()) for p in fit.model.parameters())


def test_float64_stays_float64():
    fit = fitted(rows().double(), epochs=1)
    assert fit.model.decoder[0].weight.dtype == torch.float64
    assert fit.evidence(rows().double(), num_samples=10).values.dtype == torch.float64


def test_extreme_logits_stay_finite():
    model = lvm.models.SigmoidBeliefNet((3, 2), data_dim=6)
    guide = lvm.guides.RecognitionNet(model)
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.parameters()):
            parameter.mul_(1e4).add_(1e3)
    x = rows()
    objective = lvm.infer.WakeSleep(num_samples=3, wake_guide=1.0)
    loss = objective.loss_and_grads(model, guide, x)
    assert math.isfinite(loss)
    assert all(bool(p.grad.isfinite().all()) for p in (*model.parameters(), *guide.parameters()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (rows(1), "expected at least two rows to learn from; got 1 row"),
        (rows() * 0.5, "expected zeros and ones; got 0.5 at row"),
        (-rows(), "expected zeros and ones; got -1 at row"),
        (rows().unsqueeze(0), r"expected x of shape \(n, d\); got \(1, 40, 6\)"),
    ],
)
def test_rows_that_do_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        fitted(x)


def test_missing_values_are_refused():
    x = rows()
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"nan|NaN|missing"):
        fitted(x)


def test_integers_are_read_as_zeros_and_ones():
    one, other = fitted(rows(), epochs=2), fitted(rows().long(), epochs=2)
    assert torch.allclose(one.model.decoder[0].weight, other.model.decoder[0].weight.float())


@pytest.mark.parametrize("inference", ["wake-sleep", "nvil", "svi"])
def test_parameters_are_named_as_in_the_module(inference):
    fit = lvm.fit(lvm.models.SigmoidBeliefNet((3, 2)), rows(), inference=inference, max_epochs=2, progress=False)
    own = {f"decoder.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert set(fit.params) == {*own, "top_bias"}
    theirs = {f"recognition.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert set(fit.parameters()) == {*own, "top_bias", *theirs}
    assert torch.equal(fit.params["decoder.0.weight"], fit.model.decoder[0].weight)
