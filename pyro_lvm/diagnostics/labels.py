"""Components have no order of their own: give all draws, and all fits, the same one.

References:
    M. Stephens (2000), Dealing with label switching in mixture models, JRSS B 62, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.latents import draw_responsibilities
from pyro_lvm.diagnostics.paths import chains_of, discrete_kinds
from pyro_lvm.distributions.state_laws import exact_log_probs
from pyro_lvm.evidence.exact import nesting
from pyro_lvm.handlers.hidden_states import states_of
from pyro_lvm.infer.factors import Factor, trace_factors
from pyro_lvm.infer.structure import REFUSALS, first_rows
from pyro_lvm.training.data import Arguments

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["align", "common_order", "component_axes", "permutations"]

ALIGNED_STEPS = 4096
"""Steps by which the states of chains are recognised; of more, evenly spaced ones."""


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
    """Draws with the components of every mixture parameter, or the states of every chain's, in one common order.

    Left as they are for models with no, or more than one, discrete site per row, and for chains whose program tells
    its states apart (as left-to-right ones do).

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
    table = _draw_tables(fit, arguments, flat if fit.latent else [{}], states)
    order = permutations(table, _first_columns(arguments, table.shape[1]) if across_fits else None)
    out = {}
    for name, values in draws.items():
        flattened = values.flatten(0, 1)
        for axis in axes.get(name, ()):
            index = order.reshape(len(order), *[1] * axis, -1, *[1] * (flattened.dim() - axis - 2))
            flattened = flattened.gather(axis + 1, index.expand_as(flattened))
        out[name] = flattened.reshape(values.shape)
    return out


def common_order(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]]) -> Int[Tensor, "s k"] | None:
    """For every draw the order of its states that agrees best with the others; None if there is but one order."""
    axes, states = component_axes(fit, arguments, draws[0])
    return permutations(_draw_tables(fit, arguments, draws, states)) if axes else None


def _draw_tables(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]], states: int) -> Tensor:
    """Posterior of the only discrete variable of every row, or of evenly spaced steps, by draw, (s, rows, states)."""
    if discrete_kinds(fit, arguments)[0]:
        tables = draw_responsibilities(fit, arguments, draws)
        return torch.stack([next(iter(t.values())).reshape(-1, states) for t in tables])
    parts = []
    for _, sites in chains_of(fit, arguments, draws):
        (chain,) = sites.values()
        table = chain.smooth()[0].flatten(1, -2)
        parts.append(table[:, _spaced(table.shape[1])])
    return torch.cat(parts)


def _spaced(steps: int) -> Tensor:
    return torch.linspace(0, steps - 1, min(steps, ALIGNED_STEPS)).round().long()


def _first_columns(arguments: Arguments, rows: int) -> Tensor | None:
    """The first column of the rows, or of the steps that stand for them, missing entries at its mean."""
    table = arguments.main.reshape(arguments.num_rows, -1)
    if len(table) != rows:
        table = arguments.main.reshape(-1, arguments.main.shape[-1] if arguments.main.dim() > 2 else 1)
        table = table[_spaced(len(table))]
    first = table[:, :1]
    return torch.where(first.isnan(), first.nanmean(), first) if len(table) == rows else None


def component_axes(fit: Fit, arguments: Arguments, values: dict[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], int]:
    """The axes along which each parameter is indexed by the model's discrete variable, found by differentiation.

    Args:
        fit: The fit.
        arguments: Rows to run the model on.
        values: A value for every parameter or latent site.

    Returns:
        Axes by name, and the number of states; nothing if the model has not exactly one discrete site per row.
    """
    with fit.scope(), torch.enable_grad(), _pyro.validation(False):
        leaves = {name: v.detach().clone().requires_grad_() for name, v in values.items() if v.is_floating_point()}
        depth = nesting(fit, arguments)
        few = first_rows(arguments.args, arguments.kwargs) or (arguments.args, arguments.kwargs)

        def factors_at(values: dict[str, Tensor], args: tuple, kwargs: dict[str, Any]) -> dict[str, Factor]:
            given = poutine.condition if fit.latent else poutine.substitute
            return trace_factors(given(fit.program, values), depth, args, kwargs, differentiable=True)[1]

        try:
            factors = factors_at(leaves, *few)
        except REFUSALS:
            few = (arguments.args, arguments.kwargs)
            factors = factors_at(leaves, *few)
        latent = [f for f in factors.values() if f.enumerated]
        hidden = [f for f in factors.values() if states_of(f.site) is not None]
        if len(latent) + len(hidden) != 1:
            return {}, 0
        if latent:
            return _axes_of_components(latent[0], factors, leaves)
        (chain,) = hidden
        axes, states = _axes_of_states(chain, leaves), chain.fn.num_states
        shifted = {name: _shifted(leaf.detach(), axes.get(name, ())) for name, leaf in leaves.items()}
        before, after = chain.log_density, factors_at(shifted, *few)[chain.name].log_density
        # a program that tells its states apart, as left-to-right ones do, has but one order of them
        return (axes, states) if torch.allclose(before, after, rtol=1e-3, atol=1e-2) else ({}, 0)


def _axes_of_components(
    z: Factor, factors: dict[str, Factor], leaves: dict[str, Tensor]
) -> tuple[dict[str, tuple[int, ...]], int]:
    dim = z.site["infer"]["_enumerate_dim"]
    states = z.value.shape[dim - z.fn.event_dim]
    axes: dict[str, tuple[int, ...]] = {}
    for name, leaf in leaves.items():
        if _gradient(z.log_density, leaf) is not None:
            if leaf.dim() and leaf.shape[-1] == states:
                axes[name] = (leaf.dim() - 1,)
            continue
        for factor in factors.values():
            density = factor.log_density
            if factor is z or density.dim() < -dim or density.shape[dim] != states:
                continue
            gradient = _gradient(density.select(dim, 0), leaf)
            axis = None if gradient is None else _only_axis(gradient, states)
            if axis is not None:
                axes[name] = (axis,)
    return axes, states


def _axes_of_states(chain: Factor, leaves: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Where parameters of a hidden Markov site are indexed by its states, the previous and the next one."""
    states = chain.fn.num_states
    laws = [(exact_log_probs(law.fn), law) for law in chain.fn.laws.values()]
    emission = chain.fn.tables(chain.value)[2]
    by_state = [(table.select(-1 - law.given, 0), law.of_states) for table, law in laws if law.given]
    axes: dict[str, tuple[int, ...]] = {}
    for name, leaf in leaves.items():
        found: set[int] = set()
        for table, law in laws:
            if not law.given and _gradient(table, leaf) is not None and leaf.dim() and leaf.shape[-1] == states:
                found.add(leaf.dim() - 1)
        for table, moves in (*by_state, (emission.select(-1, 0), False)):
            uneven = torch.linspace(1, 2, table.shape[-1]).to(table)  # else a normalised law's gradient may vanish
            gradient = _gradient(torch.where(table.isfinite(), table, 0.0) * uneven, leaf)
            axis = None if gradient is None else _only_axis(gradient, states)
            if axis is not None:
                found |= {axis, axis + 1} if moves and leaf.shape[axis + 1 : axis + 2] == (states,) else {axis}
        if found:
            axes[name] = tuple(sorted(found))
    return axes


def _shifted(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    return value.roll([1] * len(axes), axes) if axes else value


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
