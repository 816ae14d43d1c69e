"""Log-space sums against float64 broadcasting, where factors agree and where they do not."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import pyro_lvm as lvm
from pyro_lvm import _pyro
from pyro_lvm.ops.log_einsum import einsum

EQUATIONS = ["a->", "a->a", "ab->b", "ab->ba", "a,ab->b", "ab,ab,a->b", "nb,bc->nc", "nb,bc,c->n", ",a->a", "ab,b->"]
SIZES = {"a": 3, "b": 4, "c": 2, "n": 5}


def plain(equation, operands):
    inputs, output = equation.split("->")
    order = output + "".join(sorted(set(inputs) - {","} - set(output)))
    total = 0
    for operand, name in zip(operands, inputs.split(","), strict=True):
        spread = operand.reshape(operand.shape + (1,) * (len(order) - len(name)))
        names = name + "".join(d for d in order if d not in name)
        total = total + spread.permute([names.index(d) for d in order])
    return total.flatten(len(output)).logsumexp(-1) if len(order) > len(output) else total


@pytest.mark.parametrize("spread", [1.0, 60.0, 2000.0])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients(equation, spread):
    names = equation.split("->")[0].split(",")
    operands = [
        (spread * torch.randn([SIZES[d] for d in name], dtype=torch.float64)).requires_grad_() for name in names
    ]
    found, expected = einsum(equation, *operands), plain(equation, operands)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad((found * weights).sum(), operands),
        torch.autograd.grad((expected * weights).sum(), operands),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_what_is_impossible_stays_so_without_a_gradient():
    first = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]], requires_grad=True)
    second = torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]], requires_grad=True)
    for equation in ("ab,ab->a", "ab,bc->ac"):
        found = einsum(equation, first, second)
        assert bool(torch.isneginf(found[1]).all())
        possible = found[torch.isfinite(found)]
        gradients = torch.autograd.grad(possible.sum() + 0 * first.sum().nan_to_num(), first, allow_unused=True)
        assert all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [5.0, 12.0, 60.0, 1e4])
def test_a_known_label_far_from_its_row(local, dtype, distance):
    """A row known to be of the component that is `distance` standard deviations away has it with probability one."""
    x = torch.tensor([distance, 0.3, 0.1], dtype=dtype)

    def mixture(x):
        loc = pyro.param("loc", torch.tensor([0.0, distance], dtype=dtype))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5], dtype=dtype)))
            pyro.sample("x", dist.Normal(loc[z], torch.ones((), dtype=dtype)), obs=x)

    mask = torch.tensor([True, False, False])
    model = config_enumerate(lvm.handlers.clamp(mixture, {"z": torch.zeros(3, dtype=torch.long)}, mask=mask))
    em = lvm.infer.EM(model)
    first = dist.Normal(0.0, 1.0).log_prob(x[0]) + torch.tensor(0.5, dtype=dtype).log()
    assert torch.equal(em.posterior(x)["z"][0], torch.tensor([1.0, 0.0], dtype=dtype))
    with _pyro.exact_log_sums():
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda x: None, x)
    assert loss.item() == pytest.approx(em.loss(x), rel=1e-5)
    assert loss.item() == pytest.approx(-first.item(), abs=10, rel=1e-5)
    gradient = torch.autograd.grad(loss, pyro.param("loc").unconstrained())[0]
    expected = -(x[0] + (em.posterior(x)["z"][1:, 0] * x[1:]).sum())
    assert gradient[0].item() == pytest.approx(expected.item(), rel=1e-5)
    svi = lvm.infer.SVI(model)
    assert svi.loss(x) == pytest.approx(em.loss(x), rel=1e-5)
