"""Stub."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Smoothed", "filter", "log_likelihood", "predict", "sample", "smooth", "viterbi"]


@dataclass
class Smoothed:
    log_likelihood: Tensor
    marginals: Tensor
    transitions: Tensor


def _mask(emission, lengths):
    T = emission.shape[-2]
    if lengths is None:
        return torch.ones(emission.shape[:-1], dtype=torch.bool)
    return torch.arange(T) < lengths.unsqueeze(-1)


def log_likelihood(initial, transition, emission, lengths=None, *, algorithm="auto"):
    m = _mask(emission, lengths)
    T, K = emission.shape[-2:]
    emission = torch.where(m.unsqueeze(-1), emission, 0.0)
    a = initial + emission[..., 0, :]
    tr = transition.expand(*transition.shape[:-3], max(T - 1, 0), K, K) if T > 1 else transition
    for t in range(1, T):
        b = (a.unsqueeze(-1) + tr[..., t - 1, :, :]).logsumexp(-2) + emission[..., t, :]
        a = torch.where(m[..., t].unsqueeze(-1), b, a)
    return a.logsumexp(-1)


def smooth(initial, transition, emission, lengths=None, *, pairwise=False, sum_batch=False, algorithm="auto"):
    T, K = emission.shape[-2:]
    batch = emission.shape[:-2]
    with torch.enable_grad():
        i = initial.detach().clone().requires_grad_()
        big = transition.detach().expand(*batch, max(T - 1, 1), K, K).clone().requires_grad_()
        e = emission.detach().clone().requires_grad_()
        ll = log_likelihood(i, big, e, lengths)
        gt, ge = torch.autograd.grad(ll.sum(), (big, e), allow_unused=True)
    gt = torch.zeros_like(big) if gt is None else gt.nan_to_num()
    if not (pairwise or transition.shape[-3] > 1):
        gt = gt.sum(-3)
        if sum_batch:
            gt = gt.reshape(-1, K, K).sum(0)
    return Smoothed(ll.detach(), ge.nan_to_num(), gt)


def filter(*a, **k):
    raise NotImplementedError


def viterbi(*a, **k):
    raise NotImplementedError


def sample(*a, **k):
    raise NotImplementedError


def predict(*a, **k):
    raise NotImplementedError
