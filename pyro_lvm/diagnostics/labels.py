"""Components have no order of their own: give all draws, and all fits, the same one.

References:
    M. Stephens (2000), Dealing with label switching in mixture models, JRSS B 62, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.latents import draw_responsibilities
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.infer.factors import trace_factors
from pyro_lvm.infer.structure import REFUSALS, first_rows
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["align", "component_axes", "permutations"]


def permutations(
    responsibilities: Float[Tensor, "s n k"], rows: Float[Tensor, "n d"] | None = None
) -> Int[Tensor, "s k"]:
    """For every draw the order of components that agrees best with the other draws.

    Args:
        responsibilities: Posterior state probabilities by draw, shape (s, n, k).
        rows: If given, the common order is by the centre of mass of each component along the first column.

    Returns:
        Shape (s, k): component `order[s, j]` of draw s is component j of all.
    """
    count, _, k = responsibilities.shape
    order = torch.arange(k).expand(count, k).clone().to(responsibilities.device)
    if k == 1:
        return order
    reference = responsibilities[0]
    for _ in range(2):  # once towards the first draw, once towards the mean of all
        agreement = torch.einsum("nj,snk->sjk", reference, responsibilities).cpu().numpy()
        for s in range(count):
            _, columns = linear_sum_assignment(-agreement[s])
            order[s] = torch.from_numpy(columns).to(order)
        reference = responsibilities.gather(-1, order.unsqueeze(1).expand_as(responsibilities)).mean(0)
    if rows is not None:
        first = rows.reshape(len(rows), -1)[:, 0].to(reference)
        centre = (reference * first.unsqueeze(-1)).sum(0) / reference.sum(0).clamp_min(1e-12)
        order = order[:, centre.argsort()]
    return order


def align(fit: Fit, arguments: Arguments, draws: dict[str, Tensor], *, across_fits: bool = False) -> dict[str, Tensor]:
    """Draws with the components of every mixture parameter in one common order.

    Left as they are for models with no, or more than one, discrete site per row.

    Args:
        fit: The fit that the draws belong to.
        arguments: Rows by which components are recognised.
        draws: Values of shape (chains, draws, ...).
        across_fits: Order components by their centre of mass along the data's first column, alike for all fits;
            else as the fit's own `predict` numbers them.
    """
    axes, states = component_axes(fit, arguments, {name: v[0, 0] for name, v in draws.items()})
    if not axes:
        return draws
    shape = next(iter(draws.values())).shape[:2]
    flat = [{name: values[c, s] for name, values in draws.items()} for c in range(shape[0]) for s in range(shape[1])]
    tables = draw_responsibilities(fit, arguments, flat if fit.latent else [{}])
    table = torch.stack([next(iter(t.values())).reshape(-1, states) for t in tables])
    rows = arguments.main.reshape(arguments.num_rows, -1)
    order = permutations(table, rows if across_fits and len(rows) == table.shape[1] else None)
    out = {}
    for name, values in draws.items():
        flattened = values.flatten(0, 1)
        if name in axes:
            axis = axes[name] + 1
            index = order.reshape(len(order), *[1] * (axis - 1), -1, *[1] * (flattened.dim() - axis - 1))
            flattened = flattened.gather(axis, index.expand_as(flattened))
        out[name] = flattened.reshape(values.shape)
    return out


def component_axes(fit: Fit, arguments: Arguments, values: dict[str, Tensor]) -> tuple[dict[str, int], int]:
    """The axis along which each parameter is indexed by the model's discrete site, found by differentiation.

    Args:
        fit: The fit.
        arguments: Rows to run the model on.
        values: A value for every parameter or latent site.

    Returns:
        Axis by name, and the number of states; nothing if the model has not exactly one discrete site per row.
    """
    with fit.scope(), torch.enable_grad(), _pyro.validation(False):
        leaves = {name: v.detach().clone().requires_grad_() for name, v in values.items() if v.is_floating_point()}
        model: Callable = (
            poutine.substitute(fit.program, leaves) if not fit.latent else poutine.condition(fit.program, leaves)
        )
        depth = nesting(fit, arguments)
        try:
            few = first_rows(arguments.args, arguments.kwargs) or (arguments.args, arguments.kwargs)
            _, factors = trace_factors(model, depth, *few, differentiable=True)
        except REFUSALS:
            _, factors = trace_factors(model, depth, arguments.args, arguments.kwargs, differentiable=True)
        latent = [f for f in factors.values() if f.enumerated]
        if len(latent) != 1:
            return {}, 0
        (z,) = latent
        dim = z.site["infer"]["_enumerate_dim"]
        states = z.value.shape[dim - z.fn.event_dim]
        axes = {}
        for name, leaf in leaves.items():
            if _gradient(z.log_density, leaf) is not None:
                if leaf.dim() and leaf.shape[-1] == states:
                    axes[name] = leaf.dim() - 1
                continue
            for factor in factors.values():
                density = factor.log_density
                if factor is z or density.dim() < -dim or density.shape[dim] != states:
                    continue
                gradient = _gradient(density.select(dim, 0), leaf)
                axis = None if gradient is None else _only_axis(gradient, states)
                if axis is not None:
                    axes[name] = axis
        return axes, states


def _gradient(output: Tensor, leaf: Tensor) -> Tensor | None:
    if not output.requires_grad:
        return None
    return torch.autograd.grad(output.sum(), leaf, retain_graph=True, allow_unused=True)[0]


def _only_axis(gradient: Tensor, states: int) -> int | None:
    """The axis along which only the first entry matters to the first state."""
    for axis in range(gradient.dim()):
        others = gradient.narrow(axis, 1, gradient.shape[axis] - 1)
        if gradient.shape[axis] == states and bool((others == 0).all()) and bool((gradient != 0).any()):
            return axis
    return None
