"""Observed `MixtureSameFamily` sites as what they stand for: a discrete site, and a component chosen by it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.reparam.reparam import Reparam
from pyro.ops.indexing import Vindex
from torch import Tensor

from pyro_lvm.ops.cells import compact

__all__ = ["open_mixtures"]

# Arguments that say the same: a distribution is built from one of each.
ALTERNATIVES = ({"probs", "logits"}, {"covariance_matrix", "precision_matrix", "scale_tril"})


def open_mixtures(model: Callable) -> Callable:
    r"""Rewrite every observed mixture into an enumerated site and a component, so that EM learns both in closed form.

    .. math:: p(x) = \sum_k w_k \, p(x \mid \theta_k) \quad\text{becomes}\quad
        z \sim \mathrm{Categorical}(w), \; x \sim p(\cdot \mid \theta_z)

    A site "x" whose distribution is `MixtureSameFamily(Categorical, component)` becomes the sites "x_component" and
    "x". Mixtures inside another distribution (a mixture for every column under `.to_event(1)`), latent ones, and those
    whose components cannot be made anew from their arguments stay as they are.

    Args:
        model: Any Pyro program.

    Returns:
        A program with the same parameters and the same marginal density.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro_lvm as lvm
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor([0.0, 3.0]))
        ...     law = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.5, 0.5])), dist.Normal(loc, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", law, obs=x)
        >>> with pyro.get_param_store().scope():
        ...     print(lvm.infer.EM(lvm.handlers.open_mixtures(model)).plan(torch.randn(10)))
        E-step: exact enumeration of x_component (2 states), one backward pass
        parameter  shape  M-step       because
        loc        (2,)   closed form  it is x.loc
    """
    return poutine.reparam(model, config=_choose)


def _choose(msg: Any) -> Reparam | None:
    fn = msg["fn"]
    if not msg["is_observed"] or not isinstance(fn, torch.distributions.MixtureSameFamily):
        return None
    return _OpenMixture() if _arguments(_innermost(fn.component_distribution)) else None


class _OpenMixture(Reparam):
    def apply(self, msg: Any) -> Any:
        mixture = msg["fn"]
        z = pyro.sample(f"{msg['name']}_component", mixture.mixture_distribution, infer={"enumerate": "parallel"})
        return {
            "fn": _select(mixture.component_distribution, z),
            "value": msg["value"],
            "is_observed": msg["is_observed"],
        }


def _innermost(fn: Any) -> Any:
    return _innermost(fn.base_dist) if isinstance(fn, torch.distributions.Independent) else fn


def _arguments(fn: Any) -> list[str]:
    """The arguments that a distribution can be made anew from; none if it wants more than those."""
    wanted = [name for name in inspect.signature(type(fn).__init__).parameters if name not in ("self", "validate_args")]
    if not wanted or not set(wanted) <= set(fn.arg_constraints):
        return []
    for group in ALTERNATIVES:
        there = [name for name in vars(fn) if name in group]
        wanted = [name for name in wanted if name not in group or name in there[:1]]
    return wanted


def _select(fn: Any, z: Tensor, depth: int = 0) -> Any:
    """The distribution at index z of the last batch dimension, `depth` dimensions further left inside `Independent`."""
    if isinstance(fn, torch.distributions.Independent):
        inner = fn.reinterpreted_batch_ndims
        return _select(fn.base_dist, z, depth + inner).to_event(inner)
    chosen = {}
    for name in _arguments(fn):
        inside = depth + fn.arg_constraints[name].event_dim
        whole = (slice(None),) * inside
        chosen[name] = Vindex(compact(getattr(fn, name), inside + 1))[(..., z, *whole)]
    return type(fn)(**chosen, validate_args=False)
