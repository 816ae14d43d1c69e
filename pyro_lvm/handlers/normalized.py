r"""Undirected factors: make a program that scores its discrete sites into one that gives them probabilities.

A program whose `pyro.factor` statements add up to a score :math:`F(y, z, x)` defines

.. math:: p(y, z \mid x) = \exp(F(y, z, x)) / Z(x), \qquad Z(x) = \sum_{y, z} \exp F(y, z, x).

Pyro scores it by the numerator alone, which can be made as large as one likes. The sum is the same tensor variable
elimination that sums out latent sites, run once more with the observed ones latent as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["normalized"]


class normalized:  # noqa: N801 - handlers are verbs, as in Pyro
    r"""Divide each row's score by its sum over the given sites and all discrete latent ones.

    The log of that sum is subtracted by one more `pyro.factor`, named after the first site (`"y_normalizer"`), in the
    plates where that site stands and under the same scales, and is differentiable in all parameters. What is left is
    :math:`\log p(y \mid x)` where y is observed. Where nothing is, the program is a normalised law of y and z.

    The score is all that the program counts inside those plates: factors, and densities of sites that are not masked.
    Continuous latent sites and parameters are taken as they are. The program must use what `pyro.sample` returns, not
    the argument that it observes. To clamp a site, clamp the normalized program.

    Args:
        model: A program whose discrete sites have no density of their own, such as
            `dist.Categorical(logits=torch.zeros(3)).mask(False)`, or a uniform one, and meet in `pyro.factor`s.
        sites: Names of the sites that are observed in some calls and to be summed over: the labels.

    Raises:
        ValueError: The program has no such site, the site cannot be enumerated, or part of the score stands outside of
            its plates.

    References:
        J. Lafferty, A. McCallum, F. Pereira (2001), Conditional random fields, ICML, section 3.
        A. Quattoni, S. Wang, L. Morency, M. Collins, T. Darrell (2007), Hidden conditional random fields, IEEE TPAMI
        29(10), equations 1 and 4; the example below.

    Example:
        >>> import pyro, torch, pyro.distributions as dist, pyro_lvm as lvm
        >>> def hidden_state_field(x, y=None):  # sequences (n, length), one label each, a hidden chain of three states
        ...     slope = pyro.param("slope", torch.linspace(-1, 1, 3))
        ...     label = pyro.param("label", torch.tensor([[0.5, 0.0, -0.5], [-0.5, 0.0, 0.5]]))
        ...     pair = pyro.param("pair", torch.zeros(2, 3, 3))
        ...     with pyro.plate("data", len(x)):
        ...         y = pyro.sample("y", dist.Categorical(logits=torch.zeros(2)).mask(False), obs=y)
        ...         z = None
        ...         for t in pyro.markov(range(x.shape[1])):
        ...             last, z = z, pyro.sample(f"z_{t}", dist.Categorical(logits=torch.zeros(3)).mask(False))
        ...             pyro.factor(f"unary_{t}", slope[z] * x[:, t] + label[y, z])
        ...             if t:
        ...                 pyro.factor(f"pair_{t}", pair[y, last, z])
        >>> x, y = torch.tensor([[-2.0, -1.0, -2.0], [1.0, 2.0, 1.0]]), torch.tensor([0, 1])
        >>> field = lvm.handlers.normalized(hidden_state_field, sites=("y",))
        >>> fit = lvm.fit(field, {"x": x, "y": y}, inference="em", max_epochs=20, progress=False)
        >>> fit.history["loss"][-1] < fit.history["loss"][0]
        True
        >>> fit.predict(x)["y"]
        tensor([0, 1])
    """

    def __init__(self, model: Callable, sites: Sequence[str] = ("y",)) -> None:
        sites = (sites,) if isinstance(sites, str) else tuple(sites)
        if not callable(model):
            raise TypeError(f"normalized: expected a Pyro program; got {type(model).__name__}.")
        if not sites:
            raise ValueError("normalized: expected at least one site to sum over; got none. Name the labels' site.")
        self.model = model
        self.sites = sites

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, then once more for its normalizer."""
        with _Run(self.sites[0]) as run:
            trace = poutine.trace(self.model).get_trace(*args, **kwargs)
        missing = [name for name in self.sites if name not in trace.nodes]
        if missing:
            raise ValueError(
                f"normalized: expected sites of the program; it has no site '{missing[0]}'. "
                "Check the name given to pyro.sample."
            )
        log_normalizer = self._log_normalizer(trace, args, kwargs)
        with ExitStack() as stack:
            for frame in run.enclosing:
                stack.enter_context(frame)
            pyro.factor(f"{self.sites[0]}_normalizer", -log_normalizer)
        return trace.nodes["_RETURN"]["value"]

    def _log_normalizer(self, trace: Trace, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Log of the sum of exp(score) over the sites and all discrete latent ones, by cell of their plates."""
        from pyro_lvm.infer.factors import contract, trace_factors

        frames = [f for f in trace.nodes[self.sites[0]]["cond_indep_stack"] if f.vectorized]
        nesting = max(
            (-f.dim for n in trace.nodes.values() for f in n.get("cond_indep_stack", ()) if f.vectorized), default=0
        )
        with poutine.block(), _pyro.own_enumeration():
            free = _Free(trace, self.sites)
            summed, factors = trace_factors(free(self.model), nesting, args, kwargs, differentiable=True)
            outside = [f.name for f in frames if f.name not in summed.plate_to_symbol]
            if outside:
                raise PlainError(
                    f"normalized: expected plates that the program opens itself; got '{outside[0]}' around it. "
                    "Run particles one by one (vectorize_particles=False), or wrap the whole program."
                )
            symbols = {str(summed.plate_to_symbol[f.name]): f for f in frames}
            total = torch.zeros(())
            for plates, term in contract(summed, [f for n, f in factors.items() if n not in free.given], scaled=False):
                if not symbols.keys() <= plates:
                    raise PlainError(
                        f"normalized: expected the whole score inside the plates of site '{self.sites[0]}' "
                        f"({', '.join(f.name for f in frames) or 'none'}); part of it stands outside. Move it inside."
                    )
                total = total + _cells(term, symbols)
        return total


def _cells(term: Tensor, symbols: dict[str, Any]) -> Tensor:
    """A packed tensor summed over all plates but the given ones, which get their places back."""
    dims = _pyro.dims_of(term)
    kept = sorted((s for s in symbols if s in dims), key=lambda s: symbols[s].dim)
    others = [i for i, s in enumerate(dims) if s not in symbols]
    value = term.sum(others) if others else term
    left = [s for s in dims if s in symbols]
    value = value.permute([left.index(s) for s in kept])
    shape = [1] * max((-f.dim for f in symbols.values()), default=0)
    for symbol in kept:
        shape[symbols[symbol].dim] = symbols[symbol].size
    return value.reshape(shape)


def _masked(msg: Any) -> None:
    """Mask by a tensor, not by a plain False: Pyro's zeros would be of the default type, whatever the score's is."""
    fn = msg["fn"]
    if isinstance(fn, dist.MaskedDistribution) and fn._mask is False:
        device = next((v.device for v in vars(fn.base_dist).values() if isinstance(v, Tensor)), None)
        msg["fn"] = fn.base_dist.mask(torch.zeros(fn.batch_shape, dtype=torch.bool, device=device))


class _Run(Messenger):
    """Notes where in the program the first site stands: its plates, scales and masks."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.enclosing: list[Messenger] = []

    def _pyro_sample(self, msg: Any) -> None:
        _masked(msg)
        if msg["name"] == self.site:
            self.enclosing = _pyro.enclosing(self)


class _Free(Messenger):
    """Runs a program as in a trace, but with the given sites and all discrete latent ones free to be summed over.

    Attributes:
        given: Latent sites that keep their value, whose density is no part of the score.
    """

    def __init__(self, trace: Trace, sites: Sequence[str]) -> None:
        super().__init__()
        self.trace = trace
        self.sites = sites
        self.given: set[str] = set()

    def _pyro_param(self, msg: Any) -> None:
        msg["value"], msg["done"] = self.trace.nodes[msg["name"]]["value"], True

    def _pyro_sample(self, msg: Any) -> None:
        _masked(msg)
        name, node = msg["name"], self.trace.nodes[msg["name"]]
        enumerable = getattr(msg["fn"], "has_enumerate_support", False)
        if name in self.sites and not enumerable:
            raise PlainError(
                f"normalized: expected sites whose support can be enumerated; '{name}' ({type(msg['fn']).__name__}) is "
                "not. Leave it out of sites."
            )
        if name in self.sites:
            msg["value"], msg["is_observed"] = None, False
        elif not msg["is_observed"] and not enumerable:
            msg["value"] = node["value"]
            msg["is_observed"] = not _pyro.site_is_subsample(node)
            self.given.add(name)
