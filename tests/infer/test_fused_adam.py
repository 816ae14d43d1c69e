"""Adam by its kernel alone gives the same numbers as torch's."""

import copy

import pytest
import torch

from pyro_lvm.infer.fused_adam import FusedAdam

SHAPES = [(3, 4), (5,), (), (2, 2, 2)]


def _parameters() -> list[torch.Tensor]:
    torch.manual_seed(0)
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32]
    return [torch.randn(s, dtype=d).requires_grad_() for s, d in zip(SHAPES, dtypes, strict=True)]


def _train(take, parameters, steps, missing=lambda step, which: False) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for which, p in enumerate(parameters):
            gradient = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = None if missing(step, which) else gradient
        take()


def _same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "missing",
    [
        lambda step, which: False,
        lambda step, which: which == 1 and step < 4,  # comes late, so that counts of steps differ
        lambda step, which: which == 3 and step % 2 == 1,
        lambda step, which: True,
    ],
)
def test_same_numbers_as_torch(missing) -> None:
    ours, theirs = _parameters(), _parameters()
    adam, peer = FusedAdam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1, fused=True)
    _train(adam.repeat, ours, range(10), missing)
    _train(peer.step, theirs, range(10), missing)
    assert _same(ours, theirs)


def test_rates_and_decay_may_change_and_parameters_come() -> None:
    ours, theirs = _parameters(), _parameters()
    adam, peer = FusedAdam(ours[:2], lr=0.1), torch.optim.Adam(theirs[:2], lr=0.1, fused=True)
    for optimizer, parameters, take in ((adam, ours, adam.repeat), (peer, theirs, peer.step)):
        _train(take, parameters, range(4))
        optimizer.param_groups[0].update(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-3)
        _train(take, parameters, range(4, 6))
        optimizer.add_param_group({"params": parameters[2:], "lr": 0.3})
        _train(take, parameters, range(6, 10))
    assert _same(ours, theirs)


@pytest.mark.parametrize("option", ["amsgrad", "decoupled_weight_decay"])
def test_other_kernels_are_torchs_own(option) -> None:
    ours, theirs = _parameters(), _parameters()
    adam, peer = FusedAdam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1, fused=True)
    for optimizer in (adam, peer):
        optimizer.param_groups[0].update({option: True, "weight_decay": 0.1})
    _train(adam.repeat, ours, range(5))
    _train(peer.step, theirs, range(5))
    assert _same(ours, theirs)


def test_state_goes_on_in_torchs_adam_and_back() -> None:
    ours, theirs = _parameters(), _parameters()
    adam, peer = FusedAdam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1, fused=True)
    _train(adam.repeat, ours, range(5))
    state = copy.deepcopy(adam.state_dict())
    _train(adam.repeat, ours, range(5, 10))
    adam.load_state_dict(state)  # the lists kept are those of before
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    peer.load_state_dict(copy.deepcopy(state))
    _train(adam.repeat, ours, range(5))
    _train(peer.step, theirs, range(5))
    assert _same(ours, theirs)


def test_steps_alike_look_nothing_up(monkeypatch) -> None:
    parameters = _parameters()
    adam = FusedAdam(parameters)
    _train(adam.repeat, parameters, range(2))
    monkeypatch.setattr(FusedAdam, "step", lambda self: pytest.fail("looked up"))
    _train(adam.repeat, parameters, range(2))


def test_hooks_are_called() -> None:
    parameters, calls = _parameters(), []
    adam = FusedAdam(parameters)
    _train(adam.repeat, parameters, range(3))
    adam.register_step_post_hook(lambda *args: calls.append(1))
    _train(adam.repeat, parameters, range(3))
    assert len(calls) == 3
