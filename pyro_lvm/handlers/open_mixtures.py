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

__all__ = ["arguments_of", "open_mixtures", "rebuilt", "select"]

# What an argument may be that is no tensor.
SETTING = (bool, int, float, str)
# Arguments that say the same: a distribution is built from one of each.
ALTERNATIVES = ({"probs", "logits"}, {"gate", "gate_logits"}, {"covariance_matrix", "precision_matrix", "scale_tril"})


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
    return _OpenMixture() if rebuilt(_innermost(fn.component_distribution), lambda tensor, _: tensor) else None


class _OpenMixture(Reparam):
    def apply(self, msg: Any) -> Any:
        mixture = msg["fn"]
        z = pyro.sample(f"{msg['name']}_component", mixture.mixture_distribution, infer={"enumerate": "parallel"})
        return {
            "fn": select(mixture.component_distribution, z),
            "value": msg["value"],
            "is_observed": msg["is_observed"],
        }


def _innermost(fn: Any) -> Any:
    return _innermost(fn.base_dist) if isinstance(fn, torch.distributions.Independent) else fn


def rebuilt(fn: Any, change: Callable[[Tensor, int], Tensor]) -> Any:
    """A distribution made anew from its arguments, each changed; None if its arguments do not say all of it.

    Args:
        fn: A distribution that wraps no other.
        change: From an argument and its number of event dimensions to the new argument.
    """
    found = arguments_of(fn)
    if found is None:
        return None
    tensors, settings = found
    new = {name: change(tensor, fn.arg_constraints[name].event_dim) for name, tensor in tensors.items()}
    return type(fn)(**new, **settings, validate_args=False)


def arguments_of(fn: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What a distribution can be made anew from, tensors and settings; None if that does not say all of it."""
    wanted = [name for name in inspect.signature(type(fn).__init__).parameters if name not in ("self", "validate_args")]
    tensors = [name for name in wanted if name in fn.arg_constraints]
    settings = {name: vars(fn).get(name) for name in wanted if name not in tensors}
    if not tensors or not all(isinstance(value, SETTING) for value in settings.values()):
        return None
    for group in ALTERNATIVES:
        there = [name for name in (*vars(fn), *tensors) if name in group]
        tensors = [name for name in tensors if name not in group or name in there[:1]]
    return {name: torch.as_tensor(getattr(fn, name)) for name in tensors}, settings


def select(fn: Any, z: Tensor, depth: int = 0) -> Any:
    """The distribution at index z of the last batch dimension, `depth` dimensions further left inside `Independent`."""
    if isinstance(fn, torch.distributions.Independent):
        inner = fn.reinterpreted_batch_ndims
        base = select(fn.base_dist, z, depth + inner)
        return None if base is None else base.to_event(inner)

    def chosen(tensor: Tensor, event_dim: int) -> Tensor:
        inside = depth + event_dim
        return Vindex(compact(tensor, inside + 1))[(..., z, *((slice(None),) * inside))]

    return rebuilt(fn, chosen)
