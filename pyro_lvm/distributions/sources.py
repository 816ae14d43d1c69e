"""Laws of independent sources: by name or as users pass them, and their scores for maximum likelihood."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import softplus

from pyro_lvm.distributions.flat_or_peaked import FlatOrPeaked
from pyro_lvm.distributions.hyperbolic_secant import HyperbolicSecant
from pyro_lvm.ops.source_scores import Scores

__all__ = ["PEAKED", "SOURCES", "Source", "SourceDensity", "check_source", "is_learned", "source_law"]

Source = str | torch.distributions.Distribution | Callable[[], torch.distributions.Distribution]
"""A name, a law of one real number, or a function that makes one."""

PEAKED = ("laplace", "logistic", "student-t", "sech")
"""Names of sources that are more peaked than the normal law."""

SOURCES = (*PEAKED, "sub-gaussian", "adaptive")
"""Names of sources: all of variance one, but for Student's t, of scale one. All are symmetric about 0."""


def check_source(caller: str, source: Any) -> None:
    """Raise a ValueError unless `source` is a name of `SOURCES`, a law of one real number, or a function.

    Args:
        caller: Who asks, for the error.
        source: What was passed.
    """
    if isinstance(source, torch.distributions.Distribution):
        _check_law(caller, source)
    elif source not in SOURCES if isinstance(source, str) else not callable(source):
        raise ValueError(
            f"{caller}: expected source to be one of {', '.join(SOURCES)}, a univariate law, or a function that makes "
            f"one; got {source!r}. Pass a name, as source='laplace'."
        )


def source_law(
    caller: str, source: Source, like: Tensor, freedom: Tensor | float | None = None, flat: Tensor | None = None
) -> Any:
    """The law of a source, or of each of several, as one of Pyro's.

    Args:
        caller: Who asks, for errors.
        source: As taken by `check_source`.
        like: A tensor of the type and on the device of its draws.
        freedom: Degrees of freedom of Student's t, a number or shape (k,).
        flat: Which of the sources "adaptive" are flat, shape (k,); none if None.

    Raises:
        ValueError: A function makes no law of one real number.

    Example:
        >>> import torch
        >>> source_law("Model", "sech", torch.zeros(1)).variance
        tensor(1.)
    """
    zero, one = like.new_zeros(()), like.new_ones(())
    if source == "laplace":
        return dist.Laplace(zero, one / math.sqrt(2), validate_args=False)
    if source == "logistic":
        return dist.Logistic(zero, one * (math.sqrt(3) / math.pi), validate_args=False)
    if source == "sech":
        return HyperbolicSecant(zero, one, validate_args=False)
    if source in ("sub-gaussian", "adaptive"):
        chosen = one if source == "sub-gaussian" else zero if flat is None else flat
        return FlatOrPeaked(chosen, zero, validate_args=False)
    if source == "student-t":
        return dist.StudentT(torch.as_tensor(freedom).to(like), zero, one, validate_args=False)
    try:
        law = source if isinstance(source, torch.distributions.Distribution) else source()  # type: ignore[operator]
    except TypeError as error:
        raise ValueError(f"{caller}: expected source to be a function of no arguments; it failed: {error}.") from error
    _check_law(caller, law)
    return _as_pyro(_like(law, like))


def is_learned(law: Any) -> bool:
    """Whether a law has parameters that are to be learned."""
    tensors = [value for value in vars(law).values() if isinstance(value, Tensor)]
    inside = [value for value in vars(law).values() if isinstance(value, torch.distributions.Distribution)]
    return any(tensor.requires_grad for tensor in tensors) or any(map(is_learned, inside))


def _check_law(caller: str, law: Any) -> None:
    expected = f"{caller}: expected a source whose law is that of one real number"
    if not isinstance(law, torch.distributions.Distribution):
        raise ValueError(f"{expected}; got {type(law).__name__}. Let the function return a distribution.")
    if law.event_shape or len(law.batch_shape) > 1:
        raise ValueError(
            f"{expected}; got {type(law).__name__} of shape {(*law.batch_shape, *law.event_shape)}. "
            "Pass a univariate law."
        )
    base = getattr(law.support, "base_constraint", law.support)
    if base is not torch.distributions.constraints.real:
        raise ValueError(f"{expected}, of either sign; got {type(law).__name__}. Pass a law over all real numbers.")


def _like(law: Any, like: Tensor) -> Any:
    """A copy of a law with numbers of one type on one device."""
    other = copy.copy(law)
    for name, value in list(vars(law).items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            other.__dict__[name] = value.to(like)
        elif isinstance(value, torch.distributions.Distribution):
            other.__dict__[name] = _like(value, like)
    return other


def _as_pyro(law: Any) -> Any:
    """The law with the methods of Pyro's distributions; PyTorch's own are wrapped there by the same names."""
    if isinstance(law, TorchDistributionMixin):
        return law
    wrapped = getattr(dist, type(law).__name__, None)
    if not (isinstance(wrapped, type) and issubclass(wrapped, type(law))):
        raise ValueError(
            f"source: expected a law that Pyro knows; got {type(law).__name__}. Derive it from "
            "pyro.distributions.TorchDistribution."
        )
    law.__class__ = wrapped
    return law


class SourceDensity:
    """Log-densities and scores of a law, for `ops.independent_components.climb`; of Student's t at any freedom.

    Args:
        law: As made by `source_law`.
    """

    def __init__(self, law: Any) -> None:
        self.law, self.kinked = law, isinstance(law, dist.Laplace)

    def __call__(self, y: Tensor, freedom: Tensor | None, width: float = 0.0) -> Scores:
        """Scores of sources, shape (n, k)."""
        law = self.law
        if freedom is not None:
            law = dist.StudentT(freedom, law.loc, law.scale, validate_args=False)
        return _rounded(law, y, width) if width else _scores(law, y)


def _rounded(law: dist.Laplace, y: Tensor, width: float) -> Scores:
    """Those of Laplace's law with a parabola at its kink: Huber's loss."""
    z = (y - law.loc) / law.scale
    inner = z.clamp(-width, width)
    return Scores(inner * (0.5 * inner - z) / width - (2 * law.scale).log(), inner / (width * law.scale))


@singledispatch
def _scores(law: Any, y: Tensor) -> Scores:
    with torch.enable_grad():
        at = y.detach().requires_grad_()
        log_prob = law.log_prob(at)
        (slope,) = torch.autograd.grad(log_prob.sum(), at)
    return Scores(log_prob.detach(), -slope)


@_scores.register
def _(law: FlatOrPeaked, y: Tensor) -> Scores:
    return Scores(law.log_prob(y), law.score(y))


@_scores.register
def _(law: dist.Laplace, y: Tensor) -> Scores:
    z = (y - law.loc) / law.scale
    return Scores(-z.abs() - (2 * law.scale).log(), z.sign() / law.scale)


@_scores.register
def _(law: dist.Logistic, y: Tensor) -> Scores:
    z = (y - law.loc) / law.scale
    return Scores(-z.abs() - 2 * softplus(-z.abs()) - law.scale.log(), (0.5 * z).tanh() / law.scale)


@_scores.register
def _(law: HyperbolicSecant, y: Tensor) -> Scores:
    z = 0.5 * math.pi * (y - law.loc) / law.scale
    size = z.abs()
    log_prob = -size - torch.log1p((-2 * size).exp()) - law.scale.log()
    return Scores(log_prob, 0.5 * math.pi * z.tanh() / law.scale)


@_scores.register
def _(law: dist.StudentT, y: Tensor) -> Scores:
    v = law.df
    z = (y - law.loc) / law.scale
    square = z.square()
    bulk = torch.log1p(square / v)
    constant = torch.lgamma(0.5 * (v + 1)) - torch.lgamma(0.5 * v) - 0.5 * (math.pi * v).log() - law.scale.log()
    rise = torch.digamma(0.5 * (v + 1)) - torch.digamma(0.5 * v) - 1 / v
    slope = 0.5 * v * (rise - bulk + (v + 1) * square / (v * (v + square)))
    return Scores(constant - 0.5 * (v + 1) * bulk, (v + 1) * z / ((v + square) * law.scale), slope)
